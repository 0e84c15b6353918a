"""Autoregressive image generation without vector quantization."""

__version__ = "0.1.0"
