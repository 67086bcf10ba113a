"""The controller's state machine: which deltas a commit merges, and when the run is over."""
