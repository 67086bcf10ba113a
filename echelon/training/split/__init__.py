"""Three-part split training: device, edge, and what travels between them.

A device holds the first and the last blocks of a model, an edge server the blocks between. See `docs/split.md`.
"""
