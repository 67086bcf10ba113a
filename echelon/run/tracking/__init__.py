"""Aggregated metrics for TensorBoard, MLflow and W&B: they get lines of `metrics.jsonl` and nothing else."""
