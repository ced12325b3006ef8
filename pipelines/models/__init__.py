"""A checkpoint as data: found, its header and config read, copied; then loaded whole or not at all."""
