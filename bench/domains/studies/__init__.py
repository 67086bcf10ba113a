"""The contest on domains: questions that were fixed before, runs that answer them, and the page made from their lines."""
