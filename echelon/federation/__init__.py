"""A whole federation in one process: identities, manifest, brokers, actors, supervision and the run folder."""
