"""Records: cells, results, their provenance, and the store on disk."""
