"""A federation as a fleet of processes: started, followed, killed, and judged by what its brokers hold."""
