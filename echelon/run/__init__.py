"""A whole federation in one process: assembly, supervision, the run folder, and what is recorded."""
