"""Published weights, read safely into our modules."""
