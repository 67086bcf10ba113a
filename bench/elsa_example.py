"""The split federation of examples/elsa.yaml against the same federation unsplit, and what its exchange gives away.

    python -m bench elsa_example

Both run on the virtual clock, each in a folder of its own, and `echelon audit verify` then reads the folder. What must
hold, or the exit code is 1: every audit is without findings; the split run's final loss is within 1 % of the unsplit
one's, and its fall from the base's within 5 %; and the exchange holds no tensor that devices and edges sent each
other, neither as float32 nor as it was encoded. That is looked for by canaries of 16 bytes from three places of every
such tensor; that the search finds what is there is shown with the adapters that were published, and with the same
canaries put into a copy of the transcript.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echelon.audit.replay import replay
from echelon.bus import Record, sqlite_url
from echelon.cli.running import RunArguments, execute
from echelon.config.broker import BrokerSettings
from echelon.config.run import RunSettings, dump, load
from echelon.messages.adapter import Vector
from echelon.training.split.link import TensorCodec
from echelon.training.split.tensors import Hidden
from tools.fleet.outcome import read_broker

CANARY, PREFIX = 16, 8
"""Bytes of a canary, and those that are compared first: a uint64."""
HEAD = 64
"""Bytes at the start of an encoded tensor that are its description and the scales of its first rows."""
LEAST_BYTES = 8
"""Different byte values that a canary has at least: runs of zeros stand everywhere and say nothing."""
LOSS_WITHIN, FALL_WITHIN = 0.01, 0.05
"""Largest relative differences of split from unsplit: of the final loss, and of how far it fell."""


def canaries(data: bytes) -> list[bytes]:
    """16 bytes from the start, the middle and the end, those that could not be anything; none from less than 16."""
    if len(data) < CANARY:
        return []
    places = {0, len(data) // 8 * 4, len(data) - CANARY}
    pieces = (data[at : at + CANARY] for at in sorted(places) if at + CANARY <= len(data))
    return [canary for canary in pieces if len(set(canary)) >= LEAST_BYTES]


def found_in(needles: Iterable[bytes], haystack: bytes) -> set[bytes]:
    """Those canaries that stand anywhere in the bytes, at whatever offset.

    Raises:
        ValueError: a canary has not 16 bytes.
    """
    wanted: dict[int, set[bytes]] = {}
    for needle in needles:
        if len(needle) != CANARY:
            raise ValueError(f"a canary has {CANARY} bytes, and one has {len(needle)}")
        wanted.setdefault(int.from_bytes(needle[:PREFIX], "little"), set()).add(needle)
    prefixes = np.array(sorted(wanted), np.uint64)
    seen: set[bytes] = set()
    if not prefixes.size or len(haystack) < CANARY:
        return seen
    for shift in range(PREFIX):
        words = np.frombuffer(haystack, "<u8", (len(haystack) - shift) // PREFIX, shift)
        places = np.minimum(np.searchsorted(prefixes, words), prefixes.size - 1)
        for at in np.flatnonzero(prefixes[places] == words):
            start = shift + PREFIX * int(at)
            piece = haystack[start : start + CANARY]
            seen |= wanted[int(words[at])] & {piece}
    return seen


class Taken:
    """Canaries of every tensor that was sent between a device and its edge in this process."""

    def __init__(self) -> None:
        self.tensors = 0
        self.needles: set[bytes] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every tensor while the block runs."""
        pack = TensorCodec.pack

        def packed(wire: TensorCodec, stream: str, step: int, micro: int, hidden: Hidden) -> bytes:
            data = pack(wire, stream, step, micro, hidden)
            self.tensors += 1
            self.needles.update(canaries(np.ascontiguousarray(hidden, "<f4").tobytes()))
            self.needles.update(canaries(data[HEAD:]))
            return data

        TensorCodec.pack = packed  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            TensorCodec.pack = pack  # type: ignore[method-assign,assignment]


def transcript(exchange: dict[str, list[Record]]) -> bytes:
    """Keys, values and headers of every record of the exchange, with a space between them."""
    return b" ".join(
        part
        for records in exchange.values()
        for record in records
        for part in (record.key, record.value, *(value for _, value in record.headers))
    )


def unsplit(settings: RunSettings) -> RunSettings:
    """The same run file without edges: every device holds the whole model."""
    boundaries = tuple(one.model_copy(update={"split": None}) for one in settings.boundaries)
    return settings.model_copy(update={"boundaries": boundaries, "name": f"{settings.name}-unsplit"})


@dataclass(frozen=True)
class Ended:
    """A run that ended: its summary, every record of its exchange, and the adapter that follows from those."""

    summary: dict[str, Any]
    exchange: dict[str, list[Record]]
    adapter: Vector


def run(config: Path, overrides: Sequence[str], out: Path) -> Ended:
    """`echelon run`, in this process.

    Raises:
        SystemExit: it did not end well.
    """
    code = execute(RunArguments(config, out, tuple(overrides), None, as_json=False, quiet=True))
    if code != 0:
        raise SystemExit(f"`echelon run {config}` ended with {code}; see {out}")
    where = BrokerSettings(url=sqlite_url(out / "brokers" / "exchange.sqlite"))
    exchange = asyncio.run(read_broker(where))
    *_, last = replay(exchange)
    return Ended(json.loads((out / "summary.json").read_text()), exchange, last.adapter)


def verified(out: Path) -> bool:
    """Whether `echelon audit verify` of a run folder ends well, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "echelon", "audit", "verify", str(out), "--json"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
    return done.returncode == 0 and bool(json.loads(done.stdout)["ok"])


def measured(config: Path, overrides: Sequence[str], out: Path) -> tuple[dict[str, Any], Ended]:
    """Run, audit; the figures that both kinds of run have."""
    begun, cpu = time.perf_counter(), time.process_time()
    ended = run(config, overrides, out)
    wall, used = time.perf_counter() - begun, time.process_time() - cpu
    summary = ended.summary
    kept = ("base_loss", "final_loss", "commits", "windows", "windows_void", "dropouts", "tokens", "closed")
    figures = {name: summary[name] for name in kept} | {
        "virtual_s": summary["training_s"],
        "real_s": round(wall, 1),
        "cpu_s": round(used, 1),
        "exchange_bytes": sum(record.size for records in ended.exchange.values() for record in records),
        "split_bytes": summary["split_bytes"],
        "audit_ok": verified(out) and bool(summary["audit"]["ok"]),
    }
    return figures, ended


def compare(config: Path, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Both runs, in folders that this one gets; figures and verdicts."""
    settings = load(config, tuple(overrides))
    if settings.clock != "virtual":
        raise SystemExit("both runs must be in this process: give a run file with clock: virtual")
    if all(boundary.split is None for boundary in settings.boundaries):
        raise SystemExit("no boundary of the run file is split: there is nothing to compare")
    folder.mkdir(parents=True, exist_ok=True)
    other = folder / "unsplit.yaml"
    other.write_text(dump(unsplit(settings)))
    taken = Taken()
    with taken.watching():
        split, result = measured(config, overrides, folder / "split")
    plain, _ = measured(other, (), folder / "unsplit")
    text = transcript(result.exchange)
    begun = time.perf_counter()
    seen = found_in(taken.needles, text)
    searched = time.perf_counter() - begun
    adapter = np.ascontiguousarray(result.adapter, "<f4").tobytes()
    known = canaries(adapter)
    planted = found_in(taken.needles, b" ".join((text, *taken.needles)))
    apart = {name: abs(split["final_loss"][name] / loss - 1.0) for name, loss in plain["final_loss"].items()}
    falls = [each["base_loss"]["overall"] - each["final_loss"]["overall"] for each in (split, plain)]
    return {
        "run_file": settings.name,
        "budget_commits": settings.budget.commits,
        "split": split,
        "unsplit": plain,
        "final_loss_apart": apart,
        "fall_apart": abs(falls[0] / falls[1] - 1.0),
        "canaries": {
            "tensors": taken.tensors,
            "searched_for": len(taken.needles),
            "in_the_exchange": len(seen),
            "found_when_planted": len(planted),
            "adapter_found": bool(known) and found_in(known, text) == set(known),
            "search_s": round(searched, 1),
        },
    }


def faults(figures: dict[str, Any]) -> list[str]:
    """What does not hold of the figures, in words."""
    wrong = [
        f"the audit of the {kind} run failed"
        for kind in ("split", "unsplit")
        if not figures[kind]["audit_ok"]
    ]
    wrong += [
        f"{kind}: {figures[kind]['commits']} commits, and {figures['budget_commits']} were to be made"
        for kind in ("split", "unsplit")
        if figures["budget_commits"] is not None and figures[kind]["commits"] != figures["budget_commits"]
    ]
    wrong += [
        f"final loss of {name}: {apart:.2%} apart, at most {LOSS_WITHIN:.0%} is wanted"
        for name, apart in figures["final_loss_apart"].items()
        if not apart <= LOSS_WITHIN
    ]
    if not figures["fall_apart"] <= FALL_WITHIN:
        wrong.append(
            f"the losses fell by {figures['fall_apart']:.1%} unlike, at most {FALL_WITHIN:.0%} is wanted"
        )
    seen = figures["canaries"]
    if not seen["searched_for"]:
        wrong.append("no tensor was sent, so none was looked for")
    if seen["in_the_exchange"]:
        wrong.append(f"{seen['in_the_exchange']} canaries of activations stand on the exchange")
    if seen["found_when_planted"] != seen["searched_for"] or not seen["adapter_found"]:
        wrong.append("the search for canaries does not find what is there")
    return wrong


def main(given: Sequence[str] | None = None) -> int:
    """Run both, say what came of it; 0 if all holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("examples/elsa.yaml"))
    parser.add_argument("--set", action="append", default=[], help="override of the run file, a.b=value")
    parser.add_argument("--out", type=Path, help="keep the run folders here; it must not hold runs yet")
    parser.add_argument("--json", type=Path, help="where the figures go; default: stdout")
    args = parser.parse_args(given)
    with ExitStack() as stack:
        folder = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        figures = compare(args.config, args.set, folder)
    wrong = faults(figures)
    for fault in wrong:
        print(f"elsa_example: {fault}", file=sys.stderr)
    text = json.dumps(figures, indent=2)
    if args.json is None:
        print(text)
    else:
        args.json.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
