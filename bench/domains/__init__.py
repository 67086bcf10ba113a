"""Six domains that differ: the ground of a contest that can be lost.

In the order of the work: `documents` (what a package's files say), `prepare` (cleaned, without duplicates, split, as
files that a run reads).
"""
