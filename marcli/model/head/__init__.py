"""Models of p(token | z)."""
