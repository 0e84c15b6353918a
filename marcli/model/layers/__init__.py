"""Attention, MLPs, norms and embeddings shared by backbones and heads."""
