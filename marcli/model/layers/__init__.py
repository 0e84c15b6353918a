"""Attention, MLPs, norms and embeddings shared by the backbones."""
