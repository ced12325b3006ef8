"""What is passed on and kept: cells, results, their provenance, and the store on disk."""
