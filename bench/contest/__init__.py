"""The contest: arms that are configurations of the same actors, on the same data, start and cost model.

In the order of the work: `data` (documents, near-duplicates, splits, partitions), `arms` (what is compared), `cells`
(under which conditions), `plan` (which runs a tier has), `learner` and `runs` (one run), `execute` (many runs, in
processes), `results` (the raw figures, append-only), `stats`, `tables` and `plots` (what the raw figures say).
Everything that is reported is derived from the raw figures; nothing is typed.
"""
