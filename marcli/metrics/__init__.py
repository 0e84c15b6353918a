"""How good pictures are: features, statistics, distances."""
