"""Recipes to runs."""
