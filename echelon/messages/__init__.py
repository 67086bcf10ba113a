"""Wire types, by plane, and the one codec that all of them go through.

`wire` has the codec and its limits, `envelope` the signatures of both planes, `boundary` and `exchange` the closed
sets of messages, `handshake` the bodies of secure aggregation, `manifest` the signed terms of a run.
"""
