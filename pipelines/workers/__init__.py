"""Cells -> results: in this process or on Ray actors, each kept as it comes."""
