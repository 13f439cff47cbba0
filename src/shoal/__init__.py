"""Shoal serves many language models from a few GPUs."""

__version__ = "0.1.0"
