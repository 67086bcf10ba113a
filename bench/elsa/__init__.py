"""The benchmark `elsa`: text classification by devices that cannot hold their model; see `bench/elsa/__main__.py`."""
