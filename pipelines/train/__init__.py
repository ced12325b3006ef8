"""A tiny Llama trained, or a checkpoint extended under a strategy."""
