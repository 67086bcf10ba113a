"""Tasks: what a model learns. Each says how data is encoded, what the loss is, and what an evaluation measures."""
