"""The controller over its own log: another history, or a commit that is not what its inputs give.

Everything is signed with the real key, and derived, numbered and chained as it must be wherever he can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from echelon.messages.exchange import Close, CloseReason, Commit, Payload, RefusalReason
from tests.adversary.case import Cases, Played
from tests.adversary.rewriting import Plan, plan_of, rewritten
from tests.adversary.seasons import (
    AUDIT,
    COMMITS,
    SECOND,
    Live,
    again,
    audit,
    heavier,
    live,
    on_commit,
    season,
    time_lie,
)
from tests.audit.synthetic import CONTROLLER, Exchange, terms

CASES = Cases("log")


# ---- the controller alone: another history ---------------------------------------------------------


REWRITINGS: tuple[tuple[str, str, Callable[[Plan], Plan], str], ...] = (
    (
        "rollback with fresh close",
        "takes back the last commit and closes anew",
        lambda p: p.cut(3),
        "delta.a@9",
    ),
    ("rollback with fresh close", "takes back two commits and closes anew", lambda p: p.cut(2), "delta.a@7"),
    (
        "rollback with fresh close",
        "takes back two commits, claims to have read all deltas, closes anew",
        lambda p: replace(p.cut(2), end=p.end),
        "delta.a@7",
    ),
    ("cut back to genesis", "closes behind genesis", lambda p: p.cut(0), "delta.a@3"),
    ("left-out boundary", "never reads boundary c", lambda p: p.without(2), "delta.c@3 against global@3"),
    (
        "late-read delta",
        "reads every delta of b one commit later, so that it is damped",
        lambda p: p.late(1, 1),
        "delta.a@3 against global@3",
    ),
    (
        "late-read delta",
        "reads deltas of b one commit later from the third commit on",
        lambda p: p.late(1, 1, since=2),
        "delta.a@7 against global@7",
    ),
    ("joined commits", "makes one commit of two", lambda p: p.joined(2), "delta.a@5 against global@4"),
    ("split commits", "makes two commits of one", lambda p: p.split(2), "delta.a@5 against global@5"),
    (
        "measured-time lie",
        "states another time afterwards",
        lambda p: p.stating(lambda place, old: (SECOND + (place == 1),)),
        "delta.a@5 against global@5",
    ),
)
for kind, does, change, record in REWRITINGS:
    CASES.add("controller", kind, does, again(change), by=AUDIT, finding="interlock", record=record)


def end_taken_back() -> Played:
    """The limit that witnesses and checkpoints close: no gate had read the end."""
    exchange = Exchange(terms())
    for boundary in (0, 1):
        exchange.delta(boundary)
    exchange.commit()
    exchange.close()
    topics = rewritten(exchange.topics, plan_of(exchange.topics).cut(0), CONTROLLER)
    assert topics["global"] != exchange.topics["global"]
    return audit(topics, pinned=exchange.genesis_sha256)


CASES.add(
    "controller",
    "rollback with fresh close",
    "takes back a commit that no delta had read yet, without witnesses",
    end_taken_back,
    reason="no gate's signature covers it; with a witness or a checkpoint it is found",
)


# ---- the controller alone: a commit that is not what it must be ------------------------------------


def _stale(commit: Commit) -> dict[str, Any]:
    first, *rest = commit.merged
    return {"merged": (first.model_copy(update={"staleness": 1}), *rest)}


def _head(**fields: Any) -> Callable[[Commit], dict[str, Any]]:
    def change(commit: Commit) -> dict[str, Any]:
        first, *rest = commit.heads
        return {"heads": (first.model_copy(update=fields), *rest)}

    return change


FIELDS: tuple[tuple[str, str, Callable[[Commit], dict[str, Any]], str], ...] = (
    ("weights and caps", "gives one delta four times its weight", heavier, "derivation"),
    ("weights and caps", "says that a fresh delta is stale", _stale, "derivation"),
    (
        "left-out boundary",
        "leaves one waiting delta out of a commit",
        lambda c: {"merged": c.merged[:-1]},
        "derivation",
    ),
    (
        "invented commit",
        "counts tokens that nobody trained",
        lambda c: {"tokens": c.tokens + 1},
        "derivation",
    ),
    (
        "pace lie",
        "asks for more local steps than the rule gives",
        lambda c: {"pace": c.pace.model_copy(update={"steps": 80})},
        "derivation",
    ),
    ("invented commit", "names another adapter", lambda c: {"adapter_sha256": b"\1" * 32}, "derivation"),
    (
        "invented commit",
        "names another state of the optimiser",
        lambda c: {"state_sha256": b"\1" * 32},
        "derivation",
    ),
    (
        "version numbers",
        "leaves out the number of a commit",
        lambda c: {"commit": c.commit + 1},
        "derivation",
    ),
    ("version numbers", "leaves out a number of its log", lambda c: {"index": c.index + 1}, "gap"),
    ("replay", "uses a number of its log twice", lambda c: {"index": c.index - 1}, "fork"),
    ("left-out boundary", "states no head of boundary c", lambda c: {"heads": c.heads[:-1]}, "heads"),
    ("invented base", "states another root of a delta log", _head(root=b"\1" * 32), "heads"),
    ("invented base", "states a longer delta log than there is", _head(size=9), "missing"),
    ("replay", "hides its own records before the commit", lambda c: {"prefix": b"\1" * 32}, "prefix"),
)
for kind, does, edit_of, finding in FIELDS:
    # No delta departs from a number that was left out: the last commit's.
    number = 4 if does == "leaves out the number of a commit" else 2
    record = "delta.a" if finding == "missing" else f"global@{2 * number + 1}"
    CASES.add("controller", kind, does, on_commit(number, edit_of), by=AUDIT, finding=finding, record=record)


def another_adapter() -> Played:
    """The manifest is true in every field; the bytes before it are others, with sound chunk digests and prefix."""
    exchange = Exchange(terms(boundaries=3, deltas_per_commit=3))
    for boundary in range(3):
        exchange.delta(boundary)
    write = exchange.main.chunks

    def zeros(data: bytes, described: Payload) -> None:
        write(bytes(len(data)), described)

    with patch.object(exchange.main, "chunks", zeros):
        exchange.commit()
    exchange.close()
    return audit(exchange.topics, pinned=exchange.genesis_sha256)


CASES.add(
    "controller",
    "chunk spoofing",
    "puts an adapter of zeros before a true commit",
    another_adapter,
    by=AUDIT,
    finding="derivation",
    record="global@3",
)


def refuses(reason: RefusalReason) -> Callable[[], Played]:
    def play() -> Played:
        exchange = Live(terms(boundaries=3, deltas_per_commit=2))
        for boundary in range(3):
            exchange.delta(boundary)
        exchange.refuse(2, 0, 1, reason)
        del exchange.core._pending[2, 0]
        exchange.commit((SECOND,))
        exchange.close()
        return audit(exchange.topics, pinned=exchange.genesis_sha256)

    return play


for reason in (RefusalReason.FLOOR, RefusalReason.STALE, RefusalReason.UNKNOWN_BASE):
    CASES.add(
        "controller",
        "left-out boundary",
        f"refuses an honest delta as {reason.value}",
        refuses(reason),
        by=AUDIT,
        finding="refusal",
        record="global@2",
    )


def unrefused() -> Played:
    """A delta below the floor is read and neither merged nor refused."""
    exchange = Live(terms(boundaries=3, deltas_per_commit=2))
    for boundary in range(3):
        below = {"windows": exchange.windows(2, heads=2, n=20)} if boundary == 2 else {}
        exchange.delta(boundary, offer=boundary < 2, **below)  # type: ignore[arg-type]
    exchange.refuse = lambda *_: None  # type: ignore[method-assign]
    exchange.take(2)
    exchange.commit((SECOND,))
    exchange.close()
    return audit(exchange.topics, pinned=exchange.genesis_sha256)


CASES.add(
    "controller",
    "left-out boundary",
    "reads a delta below the floor and says nothing of it",
    unrefused,
    by=AUDIT,
    finding="refusal",
    record="delta.c@1",
)


def on_close(**changes: Any) -> Callable[[], Played]:
    return lambda: live(edit=lambda m: m.model_copy(update=changes) if isinstance(m, Close) else m)


for does, changes in (
    ("counts fewer commits in the close record", {"commits": COMMITS - 1}),
    ("names another adapter in the close record", {"adapter_sha256": b"\1" * 32}),
    ("closes for a budget that was not reached", {"reason": CloseReason.COMMITS}),
):
    CASES.add(
        "controller",
        "invented commit",
        does,
        on_close(**changes),
        by=AUDIT,
        finding="close",
        record="global@10",
    )


def after_the_close() -> Played:
    exchange = season()
    exchange.commit((SECOND,))
    return audit(exchange.topics, pinned=exchange.genesis_sha256)


CASES.add(
    "controller",
    "replay",
    "goes on behind the close record",
    after_the_close,
    by=AUDIT,
    finding="after-close",
    record="global@12",
)


def shunned() -> Played:
    """A boundary's deltas are never read, and gates read on as the run goes."""
    exchange = Exchange(terms(boundaries=3, deltas_per_commit=2))
    for number in range(7):
        if number < 2:
            exchange.delta(2, offer=False)
        for boundary in (0, 1):
            exchange.delta(boundary)
        exchange.commit()
    exchange.close()
    return audit(exchange.topics, pinned=exchange.genesis_sha256)


CASES.add(
    "controller",
    "left-out boundary",
    "leaves what stands on delta.c unread for the whole run",
    shunned,
    by=AUDIT,
    finding="withheld",
    record="delta.c@1",
)


for lie, words in ((1, "a microsecond"), (100 * SECOND, "a hundred seconds")):
    CASES.add(
        "controller",
        "measured-time lie",
        f"states {words} between commits",
        time_lie(measured=lie),
        by=AUDIT,
        finding="measured",
        record="global",
    )
    CASES.add(
        "gate",
        "measured-time lie",
        f"states {words} between commits",
        time_lie(spacing={1: lie}),
        by=AUDIT,
        finding="measured",
        record="delta.b",
    )
CASES.add(
    "gate",
    "measured-time lie",
    "states syncs of an hour",
    time_lie(sync={1: 3_600 * SECOND}),
    by=AUDIT,
    finding="measured",
    record="delta.b",
)
CASES.add(
    "gate + controller",
    "measured-time lie",
    "both state a microsecond between commits, against two other gates",
    time_lie(measured=1, spacing={1: 1}),
    by=AUDIT,
    finding="measured",
    record="global",
    but="they move the pace: of four times the lower middle is theirs, and all four are named",
)
