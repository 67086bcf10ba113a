"""Windows, buffers and merging: pure state machines that know neither a clock nor a broker.

One package for each actor: `device` and `aggregator` are the two ends of a window, `edge` trains the middle of split
models, `gate` derives again what a boundary's records add up to, `controller` makes commits. What they share stands in
`echelon.laws`; a commit's arithmetic in `echelon.outer` and `echelon.pace`.
"""
