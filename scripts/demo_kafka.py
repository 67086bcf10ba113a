"""A federation on Kafka brokers of this machine, every actor a process of its own: the quickstart, or any run file.

python scripts/demo_kafka.py [RUN.yaml] [--folder .kafka] [--out runs/kafka-NAME] [--set A.B=VALUE]

Starts the native stack if it is not up, makes a deployment, creates topics and access rules, starts every service,
follows the exchange as its auditor, evaluates the adapter, and has the audit check the broker and an export of it.
A run file of the virtual clock runs in real time here. The final loss is compared with that of an embedded run of the
same settings, where there is one.
Exit codes: 0 good; 1 something is not as it must be; 2 wrong configuration; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `tools` is no part of what is installed

from echelon.audit.records import read_manifest
from echelon.audit.replay import replay
from echelon.bus import Record
from echelon.bus.chunks import is_chunk
from echelon.cli import closing
from echelon.cli.output import change, count, duration, show_error
from echelon.compute.pool import Facts, LearnerPool
from echelon.config.run import RunSettings, load
from echelon.errors import ConfigError, EchelonError
from echelon.messages.adapter import Vector
from echelon.messages.exchange import Genesis
from echelon.provision.broker_map import EXCHANGE, BrokerMap, load_brokers
from echelon.provision.deployment import AUDITOR, OPERATOR, Deployment, deploy
from echelon.units import size
from tools.fleet.fleet import Fleet, FleetError, when_failed
from tools.fleet.follow import Follower, View
from tools.fleet.outcome import Tally, faults_of_boundary, faults_of_exchange, read_broker
from tools.kafka.stack import FIRST_PORT, Stack

MOST_SECONDS = 3600.0
"""Longest that the federation may run."""
GOOD, FAILED, USAGE, STOPPED = 0, 1, 2, 130
TOLERANCE = 0.02
"""Largest relative difference of the final loss from the embedded run's."""
HARMLESS = {name: True for name in ("name", "clock", "compute", "cost", "simulation", "logging")} | {
    "window": {"deadline": True, "round_timeout": True, "patience": True}
}
"""Settings that two runs may have different and still be held against each other."""


@dataclass(frozen=True)
class Order:
    """The arguments."""

    run: Path
    folder: Path
    out: Path | None
    overrides: tuple[str, ...]
    compare: Path | None


def arguments(given: Sequence[str] | None = None) -> Order:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="A federation on Kafka brokers of this machine, every actor a process of its own."
    )
    parser.add_argument(
        "run", type=Path, nargs="?", default=Path("examples/quickstart.yaml"), help="run file"
    )
    parser.add_argument("--folder", type=Path, default=Path(".kafka"), help="folder of the native stack")
    parser.add_argument("--out", type=Path, help="deployment and results; default: runs/kafka-NAME")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument(
        "--compare", type=Path, help="summary of an embedded run; default: runs/NAME/summary.json"
    )
    parsed = parser.parse_args(given)
    return Order(parsed.run, parsed.folder, parsed.out, tuple(parsed.overrides), parsed.compare)


def in_real_time(settings: RunSettings) -> RunSettings:
    """The run file as processes can run it: on the real clock."""
    return settings.model_copy(update={"clock": "real"})


def chosen(known: BrokerMap, names: Sequence[str]) -> BrokerMap:
    """The brokers of a run's boundaries, of a stack that may have those of others, too."""
    return known.model_copy(update={"boundaries": {name: known.boundaries[name] for name in names}})


def unlike(here: RunSettings, there: RunSettings) -> list[str]:
    """Settings in which two runs differ so that their losses need not be alike; the budget first.

    The clock, and what says where and how fast a run computes, is no such setting.
    """
    mine, other = (settings.model_dump(exclude=HARMLESS) for settings in (here, there))
    names = [name for name in mine if mine[name] != other[name]]
    return sorted(names, key=lambda name: name != "budget")


def main(given: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code."""
    try:
        return Demo(arguments(given)).run()
    except ConfigError as error:
        show_error(str(error))
        return USAGE
    except EchelonError as error:
        show_error(str(error))
        return FAILED
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


class Demo:
    """One demo; see the module's docstring."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.console = Console(highlight=False)
        self.written = load(order.run, order.overrides)
        self.settings = in_real_time(self.written)
        self.out = order.out or Path("runs") / f"kafka-{self.settings.name}"
        self.summary = order.compare or Path("runs") / self.settings.name / "summary.json"

    def run(self) -> int:
        """Everything, in order."""
        names = [boundary.name for boundary in self.settings.boundaries]
        if self.written.clock != self.settings.clock:
            self._say(f"{self.order.run} has the virtual clock, which is for one process: this is real time")
        self._say(f"brokers: {self.order.folder}")
        stack = Stack(self.order.folder, [EXCHANGE, *names], first_port=FIRST_PORT)
        stack.up()
        for name in (EXCHANGE, *names):
            self._say(f"  {name:<10} {stack[name].url}")
        compute = LearnerPool(self.settings)
        try:
            facts = asyncio.run(_facts(compute))
            self._move_aside(self.out)
            made = deploy(self.settings, chosen(load_brokers(stack.brokers_yaml), names), self.out, facts)
            self._say(f"deployment: {made.folder}, manifest {made.manifest_sha256[:16]}…")
            before = asyncio.run(_losses(compute, names, facts.initial))
        finally:
            compute.close()  # the devices need the cores
        started, closed = self._federate(made)
        return self._finish(made, before, closed - started)

    def _move_aside(self, out: Path) -> None:
        if out.exists():
            old = out.with_name(f"{out.name}.{datetime.now():%Y%m%d-%H%M%S}")
            out.rename(old)
            self._say(f"the earlier run is in {old} now")

    # ---- the run ---------------------------------------------------------------------------------

    def _federate(self, made: Deployment) -> tuple[float, float]:
        """Run all services until the run is closed; the moments of the start and of the close, in seconds."""
        with Fleet(made, restart=when_failed, most_starts=5) as fleet:
            fleet.clear()  # an earlier demo's topics: its exchange is another run's
            fleet.provision()
            self._say("topics and access rules are in place")
            started = time.monotonic()
            with Follower(made.broker(EXCHANGE, AUDITOR), made) as follower:
                fleet.start()
                self._say(f"{len(fleet.services)} processes; their logs: {fleet.logs}")
                try:
                    codes = self._watch(fleet, follower.view)
                except KeyboardInterrupt:
                    self._say("stopping: every service gets to finish what it does")
                    fleet.stop(60.0)
                    raise
                closed = follower.view.closed_at or time.monotonic()
            wrong = {name: code for name, code in codes.items() if code != 0}
            if wrong:
                raise FleetError(f"services failed: {wrong}\n{fleet.tails(wrong)}")
            self.restarts = sum(service.starts - 1 for service in fleet.services.values())
            self.processes = len(fleet.services)
        return started, closed

    def _watch(self, fleet: Fleet, view: View) -> dict[str, int]:
        if not self.console.is_terminal:
            said = 0

            def tell() -> None:
                nonlocal said
                for line in view.lines[said:]:
                    said += 1
                    self._say(line)

            return fleet.wait(MOST_SECONDS, tell)
        with Live(console=self.console, refresh_per_second=4, get_renderable=lambda: _screen(fleet, view)):
            return fleet.wait(MOST_SECONDS)

    # ---- the end ---------------------------------------------------------------------------------

    def _finish(self, made: Deployment, before: dict[str, float], wall: float) -> int:
        self._say("reading the exchange as its auditor, and the boundaries as theirs")
        exchange = asyncio.run(read_broker(made.broker(EXCHANGE, AUDITOR)))
        faults = faults_of_exchange(exchange, made.boundaries)
        *_, last = replay({name: list(records) for name, records in exchange.items()})
        tallies = {}
        for name in made.boundaries:
            seen = ("control", "delta", "global", "model")
            topics = asyncio.run(read_broker(made.broker(name, AUDITOR), seen))
            tallies[name] = Tally.of(topics["control"])
            faults += faults_of_boundary(name, topics, exchange)
        self._say("evaluating the final adapter")
        compute = LearnerPool(self.settings)
        try:
            after = asyncio.run(_losses(compute, made.boundaries, last.adapter))
        finally:
            compute.close()
        report, more = self._audit(made, _genesis(made, exchange["global"]))
        faults += more
        files = made.folder / "adapter"
        files.mkdir()
        for file, data in last.files().items():
            (files / file).write_bytes(data)
        tokens = sum(tally.tokens for tally in tallies.values())
        summary: dict[str, Any] = {
            "name": self.settings.name,
            "run_id": made.manifest().run,
            "genesis_sha256": report["genesis_sha256"],
            "base_loss": before,
            "final_loss": after,
            "tokens": tokens,
            "wall_s": round(wall, 3),
            "tokens_per_s": round(tokens / wall, 1) if wall > 0 else None,
            "commits": last.commit,
            "windows": sum(tally.windows for tally in tallies.values()),
            "windows_void": sum(tally.void for tally in tallies.values()),
            "dropouts": sum(tally.dropouts for tally in tallies.values()),
            "exchange_bytes_out": sum(
                record.size
                for name, records in exchange.items()
                if name.startswith("delta.")
                for record in records
            ),
            "exchange_bytes_in": len(tallies) * sum(record.size for record in exchange["global"]),
            "adapter_sha256": last.sha256.hex(),
            "closed": report["close"],
            "best_commit": report["best_commit"],
            "processes": self.processes,
            "restarts": self.restarts,
            "audit": {"ok": report["ok"] and not faults, "findings": faults},
        }
        (made.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        faults += self._close(made, summary)
        for fault in faults:
            show_error(fault)
        return FAILED if faults else GOOD

    def _audit(self, made: Deployment, genesis: str) -> tuple[dict[str, Any], list[str]]:
        """`echelon audit` on the broker and on an export of it, and `echelon topics check`; the report, and faults."""
        url = made.brokers.exchange.url
        security = ["--security", str(made.folder / EXCHANGE / AUDITOR / "broker.yaml")]
        copy = made.folder / "exported"
        # The heads of their logs as gates and controller signed them: auditors get those from them, no broker.
        known = ["--genesis", genesis]
        for note in sorted(made.folder.glob("*/*/state/*.note")):
            known += ["--checkpoint", str(note)]
        faults = []
        audit = ("audit", "verify", url, *security, *known, "--json")
        code, text = self._echelon(*audit)
        live: dict[str, Any] = json.loads(text) if text else {}
        if code != 0 or not live.get("ok"):
            faults.append(f"`echelon audit verify {url}` ended with {code}: {live.get('findings')}")
        code, _ = self._echelon("audit", "export", url, str(copy), *security)
        if code != 0:
            faults.append(f"`echelon audit export {url}` ended with {code}")
        code, text = self._echelon("audit", "verify", str(copy), *known, "--json")
        if code != 0 or json.loads(text) != live:
            faults.append(f"the audit of {copy} does not say what the audit of the broker says")
        for broker in made.brokers.entries:
            code, text = self._echelon("topics", "check", "--config", str(made.topics(broker, OPERATOR)))
            if code != 0:
                faults.append(f"`echelon topics check` of {broker} ended with {code}: {text.strip()}")
        return live, faults

    def _echelon(self, *command: str) -> tuple[int, str]:
        """One command, as a user types it; its exit code and what it printed."""
        done = subprocess.run([sys.executable, "-m", "echelon", *command], capture_output=True, text=True)
        plain = [part for part in command[:3] if not part.startswith("--")]
        self._say(f"echelon {' '.join(plain)} …: exit {done.returncode}")
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
        return done.returncode, done.stdout

    def _close(self, made: Deployment, summary: dict[str, Any]) -> list[str]:
        shown = {
            "adapter": str(made.folder / "adapter"),
            "summary": str(made.folder / "summary.json"),
            "exported": str(made.folder / "exported"),
            "logs": str(made.folder / "logs"),
            "brokers": f"run on; stop them: ./justw kafka-down ({self.order.folder})",
        }
        closing.show(self.console, closing.ClosingSummary.model_validate(summary), shown)
        return self.held_against(summary)

    def held_against(self, summary: dict[str, Any]) -> list[str]:
        """Compare final losses with those of the embedded run, if there is one of the same settings; the faults."""
        if not self.summary.exists():
            self._say(f"\n no {self.summary} to compare with; {self._embedded()}")
            return []
        config = self.summary.with_name("config.yaml")
        differ = unlike(self.settings, load(config)) if config.exists() else []
        if differ:
            self._say(
                f"\n not compared with {self.summary}: that run has other settings of {', '.join(differ)}; "
                f"{self._embedded()}"
            )
            return []
        return self._compare(summary, json.loads(self.summary.read_text()))

    def _embedded(self) -> str:
        """How to make a run to compare with."""
        change = "".join(f" --set {override}" for override in self.order.overrides)
        return (
            f"`echelon run {self.order.run}{change} --out {self.summary.parent}` makes one (in a new folder)"
        )

    def _compare(self, here: dict[str, Any], there: dict[str, Any]) -> list[str]:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in (" final loss", "embedded", "Kafka", "difference"):
            table.add_column(heading, justify="left" if heading == " final loss" else "right")
        faults = []
        for name, loss in here["final_loss"].items():
            other = there["final_loss"].get(name)
            if other is None:
                continue
            table.add_row(f" {name}", f"{other:.4f}", f"{loss:.4f}", change(other, loss))
            if abs(loss - other) > TOLERANCE * other:
                faults.append(
                    f"final loss of {name} is {loss:.4f} and {other:.4f} in {self.summary}: more than "
                    f"{TOLERANCE:.0%} apart"
                )
        rates = (there.get("tokens_per_s") or 0.0, here.get("tokens_per_s") or 0.0)
        table.add_row(" tokens/s", count(rates[0]), count(rates[1]), change(rates[0], rates[1]))
        self.console.print()
        self.console.print(table)
        return faults

    def _say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def _genesis(made: Deployment, records: Sequence[Record]) -> str:
    """The pin for the audit: the genesis record, after it was found to carry the manifest that was deployed."""
    first = next(record for record in records if not is_chunk(record))
    _, message = read_manifest(first)
    if not isinstance(message, Genesis) or message.manifest_sha256.hex() != made.manifest_sha256:
        raise EchelonError("genesis on the exchange does not carry the manifest that was deployed")
    return hashlib.sha256(first.value).hexdigest()


async def _facts(compute: LearnerPool) -> Facts:
    return await compute.facts()


async def _losses(compute: LearnerPool, names: Sequence[str], weights: Vector) -> dict[str, float]:
    """Validation loss of each boundary and overall, nats per token."""
    weights = np.ascontiguousarray(weights, np.float32)
    results = await asyncio.gather(*(compute.evaluate_boundary(name, weights) for name in names))
    losses = {name: result.loss_sum / result.tokens for name, result in zip(names, results, strict=True)}
    total = sum(result.tokens for result in results)
    return {**losses, "overall": sum(result.loss_sum for result in results) / total}


def _screen(fleet: Fleet, view: View) -> Group:
    """What stands on the terminal while it runs."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in (" boundary", "processes", "windows", "deltas", "crossed", "training", "validation"):
        table.add_column(heading, justify="left" if heading == " boundary" else "right")
    for name, seen in view.boundaries.items():
        alive = sum(1 for service in fleet.services.values() if service.broker == name and service.running)
        table.add_row(
            f" {name}", str(alive), str(seen.windows), str(seen.deltas), size(seen.bytes),
            "–" if seen.loss is None else f"{seen.loss:.4f}",
            "–" if seen.validation is None else f"{seen.validation:.4f}",
        )  # fmt: skip
    head = Text(
        f" {duration(view.elapsed)}   commit {view.commits} of {view.budget or '?'}   "
        f"{count(view.tokens)} tokens merged   {len(fleet.running())} processes"
    )
    return Group(head, table, *(Text(f" {line}", style="dim") for line in view.lines[-6:]))


if __name__ == "__main__":
    sys.exit(main())
