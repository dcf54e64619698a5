"""Thin adapters around the backbones of `transformers`: image to patch tokens, text to sentence embeddings."""
