"""A season of the exchange: honest, or with an insider who lies in it, and what an audit of it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from echelon.audit.findings import Code, Report, Severity
from echelon.audit.records import StoredRecord
from echelon.audit.verify import verify
from echelon.messages.exchange import Close, Commit, Genesis, Refusal
from echelon.messages.manifest import PaceKind, PaceTerms, RunManifest
from tests.adversary.case import Noticed, Played
from tests.adversary.rewriting import Plan, Topics, genesis_of, plan_of, rewritten
from tests.audit.synthetic import CONTROLLER, Exchange, terms

SECOND = 1_000_000
COMMITS = 4
AUDIT = "audit verify"
CONTROLLER_REFUSES = "controller"
LETTERS = "abc"
PACED = PaceTerms(kind=PaceKind.ECHELON_DA, steps_min=2, steps_max=80, windows_max=4)
Edit = Callable[[Any], Any]


class Live(Exchange):
    """An exchange whose controller writes what `edit` makes of each manifest; gates read what it wrote."""

    edit: Edit = staticmethod(lambda message: message)

    def write(self, message: Genesis | Commit | Refusal | Close) -> StoredRecord:
        return super().write(self.edit(message))


def season(
    *,
    edit: Edit | None = None,
    deltas: Mapping[tuple[int, int], dict[str, Any]] | None = None,
    after: Callable[[Live, int], None] | None = None,
    measured: int = SECOND,
    spacing: Mapping[int, int] | None = None,
    sync: Mapping[int, int] | None = None,
    commits: int = COMMITS,
    paced: bool = False,
    manifest: RunManifest | None = None,
    **fields: Any,
) -> Live:
    """Three boundaries send one delta for each commit, and a last one that no commit takes; then the run is closed.

    Args:
        edit: what the controller makes of the manifests that it writes.
        deltas: what gates say otherwise, by (commits that there are, boundary).
        after: is given the exchange after each commit.
        measured: microseconds between commits, as the controller states them.
        spacing: what gates state instead of a second.
        sync: what gates state of their syncs instead of 10 ms.
        commits: how many.
        paced: whether measured times steer anything.
        manifest: other terms.
        fields: of the terms.
    """
    manifest = manifest or terms(boundaries=3, deltas_per_commit=3, **fields)
    exchange = Live(manifest.model_copy(update={"control": PACED}) if paced else manifest)
    if edit is not None:
        exchange.edit = edit
    for number in range(commits + 1):
        for boundary in range(3):
            changes = {
                "spacing_us": (spacing or {}).get(boundary, SECOND) if number > 1 else 0,
                "sync_us": (sync or {}).get(boundary, 10_000),
                **(deltas or {}).get((number, boundary), {}),
            }
            exchange.delta(boundary, **changes)
        if number < commits:
            exchange.commit((measured,))
            if after is not None:
                after(exchange, number + 1)
    exchange.close()
    return exchange


@cache
def _honest() -> Topics:
    return season().topics


def honest() -> Topics:
    return dict(_honest())


def noticed(report: Report) -> tuple[Noticed, ...]:
    """What an audit says, and what the controller had refused; of the interlock both records."""
    found = []
    for one in report.findings:
        if one.code in (Code.UNPINNED,) or (one.severity is Severity.INFO and one.code is not Code.REPEAT):
            continue
        where = (one.topic or "run") if one.offset is None else f"{one.topic}@{one.offset}"
        against = re.search(r"global@\d+", one.detail)
        if one.code is Code.INTERLOCK and against is not None:
            where += f" against {against.group()}"
        found.append(Noticed(AUDIT, one.code.value, where))
    found += [
        Noticed(CONTROLLER_REFUSES, one.reason.value, f"delta.{LETTERS[one.boundary]} {one.seq}")
        for one in report.refusals
    ]
    return tuple(found)


def audit(topics: Topics, *, pinned: bytes | None = None, same: bool = False, **arguments: Any) -> Played:
    """An auditor who has pinned the honest run's genesis, or another, reads these topics.

    `same`: the insiders gain nothing as long as the honest run's commits are what he derives.
    """
    report = verify(topics, genesis=pinned or genesis_of(honest()), **arguments)
    derived = [commit.adapter_sha256 for commit in report.commits]
    unchanged = same and derived == [one.adapter_sha256 for one in verify(honest()).commits]
    return Played(noticed(report), report.ok and not unchanged)


def live(**arguments: Any) -> Played:
    """A season is played as these arguments say, and audited."""
    exchange = season(**arguments)
    report = verify(exchange.topics, genesis=exchange.genesis_sha256)
    merged = {(one.boundary, one.seq) for commit in report.commits for one in commit.merged}
    lied = {(boundary, number) for number, boundary in arguments.get("deltas") or {}}
    found = noticed(report)
    return Played(found, report.ok and (not lied or lied <= merged))


def again(change: Callable[[Plan], Plan], **arguments: Any) -> Callable[[], Played]:
    """The controller writes `global` anew, from the deltas as they stand."""
    return lambda: audit(rewritten(honest(), change(plan_of(honest())), CONTROLLER), **arguments)


def on_commit(number: int, change: Callable[[Commit], dict[str, Any]]) -> Callable[[], Played]:
    """Commit `number` is written with other fields; gates read it as it stands."""

    def edit(message: Any) -> Any:
        if isinstance(message, Commit) and message.commit == number:
            return message.model_copy(update=change(message))
        return message

    return lambda: live(edit=edit)


def heavier(commit: Commit) -> dict[str, Any]:
    first, *rest = commit.merged
    return {"merged": (first.model_copy(update={"weight": 4 * first.weight}), *rest)}


def time_lie(**lies: Any) -> Callable[[], Played]:
    """Times are stated otherwise; what the insiders want is another pace."""

    def play() -> Played:
        told, plain = season(paced=True, commits=8, **lies), season(paced=True, commits=8)
        report = verify(told.topics, genesis=told.genesis_sha256)
        paces = [[c.pace for c in one.commits] for one in (report, verify(plain.topics))]
        return Played(noticed(report), paces[0] != paces[1])

    return play
