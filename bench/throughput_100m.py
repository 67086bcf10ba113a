"""The federation against bare loops, as `throughput`, with a model of 100 million random weights.

python -m bench throughput_100m -- --rounds 1
"""

from __future__ import annotations

from bench.throughput import main

if __name__ == "__main__":
    main("random100m")
