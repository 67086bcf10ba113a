"""The edge's state machine: sessions with devices, jobs, and what it adds to a window."""
