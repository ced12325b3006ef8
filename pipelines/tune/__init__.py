"""A strategy's options searched, judged on documents that the search never saw, and kept."""
