"""Benchmarks of the checkout; `python -m bench` lists them. None of them is part of the installed package."""
