"""Jobs: what is asked of whoever computes, and what comes of it, as plain values."""
