"""Simulation: the same actors on a virtual clock."""
