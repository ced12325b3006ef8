"""Cells -> results: in this process or on Ray actors, each saved when it is ready."""
