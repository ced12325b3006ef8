"""How fast the scorer, the grid and its start are, beside stock parts."""
