"""The contest on domains: questions fixed before, runs that answer them, and the page made from their lines."""
