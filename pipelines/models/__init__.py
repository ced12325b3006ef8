"""Checkpoints: locate them, read their headers and configs, copy them, load them."""
