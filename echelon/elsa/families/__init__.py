"""Model families that can be cut in three parts: one file for each kind, and the registry of all."""
