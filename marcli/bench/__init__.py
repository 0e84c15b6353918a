"""Speed and quality against the number of steps."""
