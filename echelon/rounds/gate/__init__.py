"""The gate's derivation: what a boundary's own records add up to, without trust in its aggregator."""
