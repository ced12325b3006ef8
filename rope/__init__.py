"""Rotary position embeddings, stretched: geometry -> strategy -> plan -> a live model or an engine's config.

Imports nothing of ours; the mathematics needs numpy alone, `rope.patch` also torch.
"""
