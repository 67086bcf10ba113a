"""The aggregator's state machine and its parts: who is ready, who is let in, windows, the ledger and deltas."""
