"""Results -> comparisons, tables and figures."""
