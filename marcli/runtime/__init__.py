"""Processes, seeds, run directories and progress."""
