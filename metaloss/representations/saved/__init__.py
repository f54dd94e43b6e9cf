"""Losses outside of their run: saved, read back, called like PyTorch's own."""
