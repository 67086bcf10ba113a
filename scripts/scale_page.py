"""Fill in the tables of docs/scale.md from `bench/results/boundaries.json` and `bus.json`: no figure there is typed.

python scripts/scale_page.py [PAGE]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "scale.md"
ADAPTERS = ((157_696, "158 k"), (1_000_000, "1 M"), (10_000_000, "10 M"), (100_000_000, "100 M"))
"""Parameters of an adapter, and how the table names them."""
BOUNDARIES = (10, 100, 1000)
DELTA_BYTES, COMMIT_BYTES = 2, 4
"""Bytes of a parameter in a delta of 16-bit integers, and in a commit."""
MEASURED_DIM = 64
_BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def figures(name: str) -> dict[str, Any]:
    """The figures of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]
    return found


def size(value: float) -> str:
    """Bytes in three digits, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000.0
    return f"{value:.3g} TB"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown; all but the first column are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measured() -> str:
    """What was measured, one row a federation."""
    rows = []
    for point in figures("boundaries")["points"]:
        written, read = point["commit_written_bytes"], point["commit_read_bytes"]
        rows.append(
            [
                f"{point['boundaries']:,}", f"{point['devices']:,}", f"{point['windows']:,}",
                *(size(written[family]) for family in ("delta", "global", "head", "witness")),
                size(sum(read.values())), f"{point['commit_wait_s']:.2f} s",
                f"{point['cpu_s'] / point['commits']:.1f} s", f"{point['peak_mib']:.0f} MiB",
            ]
        )  # fmt: skip
    head = [
        "boundaries", "devices", "windows", "deltas", "`global`", "heads", "cosignatures", "read by all",
        "newest delta to commit", "CPU of a commit", "memory",
    ]  # fmt: skip
    return table(head, rows)


def at(law: dict[str, Any], boundaries: int) -> float:
    """A fitted parabola at so many boundaries."""
    return float(sum(c * boundaries**power for power, c in enumerate(law["coefficients"])))


def laws() -> str:
    """The parabolas, one row a family of topics."""
    rows = []
    for name, law in figures("boundaries")["laws"].items():
        constant, linear, square = law["coefficients"]
        rows.append(
            [
                name,
                f"{constant:,.4g}",
                f"{linear:,.4g}",
                f"{square:,.4g}",
                f"{law['worst_relative_error']:.1%}",
            ]
        )
    return table(["of one commit", "constant", "· M", "· M²", "worst error"], rows)


def commit_bytes(boundaries: int, dim: int) -> tuple[float, float]:
    """Bytes of one commit that are written to the exchange, and that are read from it.

    What records say besides their vectors is as measured, at this many boundaries by the laws; the vectors are those
    of this adapter. Every delta is read by the controller, every commit by as many readers as were measured for each
    boundary.
    """
    found = figures("boundaries")
    largest = found["points"][-1]
    readers = largest["commit_read_bytes"]["global"] / largest["commit_written_bytes"]["global"]
    readers *= boundaries / largest["boundaries"]
    more = dim - MEASURED_DIM
    written = sum(at(law, boundaries) for name, law in found["laws"].items() if name.startswith("written"))
    read = sum(at(law, boundaries) for name, law in found["laws"].items() if name.startswith("read"))
    deltas = boundaries * DELTA_BYTES * more
    return written + deltas + COMMIT_BYTES * more, read + deltas + readers * COMMIT_BYTES * more


def rates() -> tuple[float, float]:
    """Bytes a second that one client wrote to one Kafka broker, and that one read from it."""
    transfer = figures("bus")["transfer"]
    return transfer["publish"]["bus"] * 1e6, transfer["read"]["bus"] * 1e6


def carried() -> str:
    """Commits an hour that one broker carries, by boundaries and adapter."""
    into, out = rates()
    rows = []
    for dim, name in ADAPTERS:
        row = [f"{name} parameters"]
        for boundaries in BOUNDARIES:
            written, read = commit_bytes(boundaries, dim)
            hourly = 3600.0 / max(written / into, read / out)
            row += [size(written), size(read), f"{hourly:,.3g}" if hourly < 1000 else f"{hourly:,.0f}"]
        rows.append(row)
    head = [
        "adapter",
        *(f"{what}, M = {m:,}" for m in BOUNDARIES for what in ("written", "read", "commits an hour")),
    ]
    return table(head, rows)


def throughput() -> str:
    """The two rates that the table before rests on."""
    into, out = rates()
    return f"Written: {into / 1e6:.1f} MB/s. Read: {out / 1e6:.1f} MB/s.\n"


TABLES: dict[str, Callable[[], str]] = {
    "measured": measured,
    "laws": laws,
    "throughput": throughput,
    "carried": carried,
}


def filled(page: str) -> str:
    """The page with every table as the figures have it."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Write the page."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
