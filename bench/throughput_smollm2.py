"""The federation against bare loops, as `throughput`, with SmolLM2-135M (first `python -m tools.real prepare .real`).

python -m bench throughput_smollm2 -- --rounds 1
"""

from __future__ import annotations

from bench.throughput import main

if __name__ == "__main__":
    main("smollm2")
