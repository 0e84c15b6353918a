"""Engines: ways to run the same generation. `plain` reads like the paper, the others are tested against it."""
