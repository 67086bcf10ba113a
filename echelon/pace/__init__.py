"""Paces: how many local steps, windows per delta, and how strong the proximal term, decided commit by commit."""
