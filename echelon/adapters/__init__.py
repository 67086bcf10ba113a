"""Kinds of adapters: which numbers are trained and travel, and how they make PEFT's A and B."""
