"""Windows, buffers and merging: pure state machines that know neither a clock nor a broker.

`ledger` and `staleness` are the arithmetic of one boundary, `device` and `aggregator` the two ends of a window,
`boundary_log` what the gate and a boundary auditor derive again; `outer`, `commits` and `pace` are the exchange's side.
"""
