"""Loss, and bytes of an upload, with masked coordinates of 16 bits against 32: the quickstart's run, seed and data.

    python -m bench ring_bits [-- --commits 6]

The federation of `examples/quickstart.yaml` on the virtual clock, where a run follows from its seed alone: with the
ring of 32 bits as the file says, and with that of 16 bits and a bound of lr x steps on a coordinate. Losses are those
of both validation splits, in nats per token. Bytes are those of masked uploads on the boundaries' topics, the mean.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from echelon import Run
from echelon.bus.sqlite_format import decode_headers
from echelon.training.model import limit_threads

QUICKSTART = Path(__file__).resolve().parent.parent / "examples" / "quickstart.yaml"
BITS = (32, 16)


def measure(ring_bits: int, commits: int, folder: Path) -> dict[str, Any]:
    """One run: its losses, and what its uploads weigh.

    Args:
        ring_bits: bits of a masked coordinate.
        commits: length of the run.
        folder: the run folder to make.
    """
    secure: dict[str, Any] = {"ring_bits": ring_bits}
    base = Run.from_yaml(QUICKSTART).settings
    if ring_bits == 16:
        secure["coordinate_clip"] = base.training.lr * base.sync.steps
    run = Run.from_yaml(
        QUICKSTART, out=folder, clock="virtual", secure=secure, budget={"commits": commits}, logging={"samples": []}
    )  # fmt: skip
    result = run.start().result()
    uploads, length = masked(folder)
    return {
        "ring_bits": ring_bits,
        "coordinate_clip": secure.get("coordinate_clip"),
        "commits": commits,
        "seed": run.settings.seed,
        "parameters": int(result.weights.size),
        "uploads": uploads,
        "upload_bytes_per_parameter": round(length / uploads / result.weights.size, 4),
        "base_loss": result.summary.base_loss,
        "final_loss": result.summary.final_loss,
        "windows": result.summary.windows,
        "audit_ok": result.audit.ok,
        "adapter_sha256": result.summary.adapter_sha256,
    }


def masked(folder: Path) -> tuple[int, int]:
    """How many masked uploads stand on the boundaries' brokers of a run, and the bytes of all their records."""
    uploads = length = 0
    for file in sorted((folder / "brokers").glob("*.sqlite")):
        with closing(sqlite3.connect(file)) as broker:
            for headers, value in broker.execute("SELECT headers, value FROM records WHERE topic = 'masked'"):
                uploads += dict(decode_headers(headers.encode())).get("kind") != b"chunk"
                length += len(value)
    return uploads, length


def main() -> None:
    """Run both, print what each gave against 32 bits, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    limit_threads()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for ring_bits in BITS:
            line = measure(ring_bits, arguments.commits, Path(folder) / str(ring_bits))
            plain = (found or [line])[0]["final_loss"]["overall"]
            line["loss_over_32_bits_percent"] = round(100 * (line["final_loss"]["overall"] / plain - 1), 3)
            found.append(line)
            print(json.dumps(line), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
