"""Hydra's door to a grid, and the preview of one."""
