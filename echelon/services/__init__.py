"""One actor as a process of its own: its configuration, its health, its metrics, and how it starts and ends."""
