"""ELSA's decisions inside a boundary: pure functions of measured numbers, which can be taken again from a record.

`fingerprint` compares devices by what their models do on public probes, `clustering` groups them, `trust` decides
who is admitted to a window, `assignment` gives devices to edges, `families`, `shapes`, `costs` and `plan` choose where
a model is cut. The source is ELSA (arXiv 2601.13824), whose public details are few; docs/elsa.md says which formulas
are reconstructions.
"""
