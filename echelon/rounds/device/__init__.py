"""The device's state machine: training, offers, and its part in secure aggregation."""
