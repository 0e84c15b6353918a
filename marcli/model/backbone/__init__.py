"""Transformers that turn known tokens into one vector z per unknown token."""
