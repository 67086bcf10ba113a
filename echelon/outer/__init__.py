"""Outer steps: from the global adapter and the deltas of boundaries to the next global adapter, bit for bit."""
