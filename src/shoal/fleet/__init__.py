"""The control plane: what runs where, and what happens to it."""
