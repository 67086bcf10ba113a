"""Six domains that differ, and a small model to adapt to them: the ground of a contest that can be lost.

In the order of the work: `documents` (what a package's files say), `prepare` (cleaned, without duplicates, split, as
files that a run reads), `vocabulary` and `cut` (a model of 19M parameters out of a larger one), `heal` (its training
on general text), `weights` and `base` (how it is kept and made), `heterogeneity` (what one domain's adapter loses on
the others' text).
"""
