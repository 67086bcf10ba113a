"""Gates over their delta logs, alone and with the controller, and whoever writes where he may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from echelon.messages.envelope import Signer
from echelon.messages.exchange import Delta, DeltaCodec
from tests.adversary.case import Cases, Played
from tests.adversary.rewriting import Plan, genesis_of, plan_of, resigned, rewritten
from tests.adversary.seasons import (
    AUDIT,
    CONTROLLER_REFUSES,
    SECOND,
    Live,
    again,
    audit,
    honest,
    live,
    season,
)
from tests.audit.synthetic import CONTROLLER, GATES, OPERATOR, Exchange, terms

CASES = Cases("log")


# ---- a gate alone ----------------------------------------------------------------------------------


def window_of(**fields: Any) -> dict[str, Any]:
    """A delta of one window that says otherwise."""
    return {"windows": Exchange(terms()).windows(0, 1, **{"heads": 4, "n": 40, **fields})}


def summary_of(**fields: Any) -> dict[str, Any]:
    (window,) = window_of()["windows"]
    return {"windows": (window.model_copy(update={"window": 90, **fields}),)}


def gate_lies(changes: dict[str, Any]) -> Callable[[], Played]:
    """In its second delta, when there is one commit, the gate of b says this."""
    return lambda: live(deltas={(1, 1): changes})


def _big() -> dict[str, Any]:
    return {"vector": np.full(96, 1e6)}


GATE_LIES: tuple[tuple[str, str, Callable[[], dict[str, Any]], str], ...] = (
    ("cohort lie", "sends the sum of a window of two devices", lambda: summary_of(heads=2, n=20), "floor"),
    (
        "weights and caps",
        "sends a sum that is one device's for the most part",
        lambda: summary_of(weight=100, weight2=9_000),
        "floor",
    ),
    (
        "weights and caps",
        "states squares of weights that no weights have",
        lambda: summary_of(weight=1_000, weight2=1_000),
        "limit",
    ),
    (
        "weights and caps",
        "states more buckets than its devices may train",
        lambda: summary_of(n=10_000),
        "limit",
    ),
    (
        "oversize window",
        "counts more devices than a cohort may have",
        lambda: summary_of(heads=33, n=330),
        "limit",
    ),
    ("oversize window", "sends a sum that clipped updates cannot give", _big, "limit"),
    (
        "oversize window",
        "sends more windows than a delta may have",
        lambda: {"windows": Exchange(terms()).windows(0, 5)},
        "limit",
    ),
    (
        "replay",
        "sends windows that an earlier delta had",
        lambda: {"windows": Exchange(terms()).windows(0, 1)},
        "bad-sequence",
    ),
    (
        "evaluations below the floor",
        "evaluates a commit that is not there",
        lambda: summary_of(eval_commit=9, eval_loss=5, eval_tokens=5),
        "unknown-base",
    ),
    (
        "invented base",
        "names a newer commit as its base, against damping",
        lambda: {"base_commit": 2},
        "unknown-base",
    ),
    (
        "invented base",
        "names an older commit's number with the digest of the newest",
        lambda: {"base_commit": 0},
        "unknown-base",
    ),
    ("invented base", "names a record that is no base", lambda: {"base_sha256": b"\1" * 32}, "unknown-base"),
    ("invented base", "says that it had read more than there is", lambda: {"seen_size": 40}, "unknown-base"),
    ("invented base", "says that it had read nothing", lambda: {"seen_size": 0}, "unknown-base"),
    ("invented base", "says that it had read another log", lambda: {"seen_root": b"\1" * 32}, "unknown-base"),
)
for kind, does, lie_of, finding in GATE_LIES:
    CASES.add(
        "gate",
        kind,
        does,
        lambda lie_of=lie_of: gate_lies(lie_of())(),  # type: ignore[misc]
        by=CONTROLLER_REFUSES,
        finding=finding,
        record="delta.b 1",
    )


def _bytes(place: int, *values: int) -> Callable[[bytes], bytes]:
    """Other bytes at this place of a payload; places from its end are negative."""

    def spoil(payload: bytes) -> bytes:
        data = bytearray(payload)
        data[place : place + len(values) if place + len(values) else None] = bytes(values)
        return bytes(data)

    return spoil


def _with_levels(change: Callable[[int, int], tuple[int, int]]) -> Callable[[bytes], bytes]:
    """Other levels of the one chunk, by what a function makes of low and high."""

    def spoil(payload: bytes) -> bytes:
        low, high = change(*(int.from_bytes(payload[at : at + 2], "little") for at in (2, 4)))
        return payload[:2] + low.to_bytes(2, "little") + high.to_bytes(2, "little") + payload[6:]

    return spoil


def _unused(payload: bytes) -> bytes:
    """Two levels, of which only the low one is used."""
    apart = _with_levels(lambda low, high: (low, max(high, low + 1)))(payload)
    return apart[:10] + b"\0" + apart[11:]


SPARSE: tuple[tuple[str, Callable[[bytes], bytes]], ...] = (
    ("counts more coordinates than its chunk may carry", _bytes(0, 6)),
    ("counts 65,535 coordinates", _bytes(0, 0xFF, 0xFF)),
    ("counts fewer coordinates than it places", _bytes(0, 4)),
    ("places a coordinate beyond the adapter", lambda payload: payload[:11] + b"\0" + payload[11:]),
    ("places more coordinates than it counts", lambda payload: payload + b"\xff"),
    ("names the higher level first", _with_levels(lambda low, high: (max(high, low + 1), low))),
    ("names a level of zero", _bytes(2, 0, 0)),
    ("names a level that no grid has", _bytes(4, 0xFF, 0xFF)),
    ("names a level that it does not use", _unused),
    ("writes its levels on a coarser grid", _with_levels(lambda low, high: (low >> 1, high >> 1))),
    ("hides bits behind its places", lambda payload: _bytes(8, payload[8] | 1)(payload)),
    ("hides bits behind its signs", lambda payload: _bytes(9, payload[9] | 1)(payload)),
    ("hides a byte behind all", lambda payload: payload + b"\0"),
    ("ends before its signs", lambda payload: payload[:9]),
    ("is empty but for its header", lambda payload: payload[:6]),
    ("is shorter than its header", lambda payload: payload[:5]),
    ("has the bytes of int16", lambda payload: bytes(192)),
)
for does, spoil in SPARSE:
    CASES.add(
        "gate",
        "malformed delta",
        f"a sparse delta {does}",
        lambda spoil=spoil: live(deltas={(1, 1): {"spoil": spoil}}, codec=DeltaCodec.SPARSE),  # type: ignore[misc]
        by=CONTROLLER_REFUSES,
        finding="bad-payload",
        record="delta.b 1",
    )
for does, changes in (
    ("says that it had read another log, as an auditor sees it", {"seen_root": b"\1" * 32}),
    ("names a record that is no base, as an auditor sees it", {"base_sha256": b"\1" * 32}),
):
    CASES.add(
        "gate", "invented base", does, gate_lies(changes), by=AUDIT, finding="interlock", record="delta.b@3"
    )


def silenced_losses() -> Played:
    """The terms keep losses inside; a gate lets one cross."""
    return live(deltas={(1, 1): summary_of(eval_commit=1, eval_loss=5, eval_tokens=5)}, report_loss=False)


CASES.add(
    "gate",
    "evaluations below the floor",
    "lets losses cross in a run that keeps them",
    silenced_losses,
    by=CONTROLLER_REFUSES,
    finding="limit",
    record="delta.b 1",
)


def numbered(number: int) -> Callable[[], Played]:
    """The gate writes a delta more, under this number."""

    def play() -> Played:
        exchange = season()
        exchange.main.records.pop()
        exchange.gates[1].number = number
        exchange.delta(1, offer=False)
        return audit(exchange.topics, pinned=exchange.genesis_sha256, allow_open=True)

    return play


CASES.add(
    "gate",
    "replay",
    "signs two deltas under one number",
    numbered(2),
    by=AUDIT,
    finding="fork",
    record="delta.b@11",
)
CASES.add(
    "gate",
    "version numbers",
    "leaves out a number",
    numbered(7),
    by=AUDIT,
    finding="gap",
    record="delta.b@11",
)


def on_the_topic_of(boundary: int, signer: Signer) -> Callable[[], Played]:
    """Somebody writes a delta of his own on a boundary's topic, with whatever rights the broker gave."""

    def play() -> Played:
        exchange = season()
        exchange.main.records.pop()
        exchange.gates[boundary].signer = signer
        exchange.delta(boundary, offer=False)
        return audit(exchange.topics, pinned=exchange.genesis_sha256, allow_open=True)

    return play


STRANGERS = {
    "gate": GATES[0],
    "device": Signer(b"\x41" * 32),
    "aggregator": Signer(b"\x42" * 32),
    "edge": Signer(b"\x43" * 32),
    "operator": OPERATOR,
    "controller": CONTROLLER,
    "witness": Signer(b"\x44" * 32),
}
for who, signer in STRANGERS.items():
    CASES.add(
        who,
        "unsigned or forged record",
        "signs a delta of boundary b with its own key",
        on_the_topic_of(1, signer),
        by=AUDIT,
        finding="bad-signature",
        record="delta.b@11",
    )


def on_global(signer: Signer) -> Callable[[], Played]:
    def play() -> Played:
        exchange = season(edit=None)
        exchange.main.records.pop()
        exchange.main.number -= 1
        exchange.main.signer = signer
        exchange.close()
        return audit(exchange.topics, pinned=exchange.genesis_sha256)

    return play


for who, signer in STRANGERS.items():
    if who != "controller":
        CASES.add(
            who,
            "unsigned or forged record",
            "closes the run with its own key",
            on_global(signer),
            by=AUDIT,
            finding="bad-signature",
            record="global@10",
        )


def attested(**fields: Any) -> Callable[[], Played]:
    """The gate of b signs another summary or sum than its windows gave; it is within every limit."""
    return gate_lies(summary_of(**fields) if fields else {"vector": np.full(96, 0.01)})


CASES.add(
    "gate",
    "weights and caps",
    "attests more tokens than were trained, towards somebody who reads the exchange only",
    attested(tokens=50_000),
    reason="n, tokens and sums are attested; `audit verify --boundary` derives them",
)
CASES.add(
    "gate",
    "invented commit",
    "signs a sum of its own making, towards somebody who reads the exchange only",
    attested(),
    reason="the exchange sees no window; `audit verify --boundary` derives the sum",
)


# ---- gates and controller --------------------------------------------------------------------------


def gate_and_controller(
    change: Callable[[Plan], Plan], edit: Callable[[Delta], Delta | None]
) -> Callable[[], Played]:
    """A gate writes its log anew, and the controller writes `global` from it."""

    def play() -> Played:
        topics = resigned(honest(), 1, GATES[1], edit)
        return audit(rewritten(topics, change(plan_of(honest())), CONTROLLER))

    return play


def _claims(seen: int) -> Callable[[Delta], Delta | None]:
    return lambda delta: delta if delta.seq < seen else None


CASES.add(
    "gate + controller",
    "rollback with fresh close",
    "the gate takes its deltas back and the controller two commits",
    gate_and_controller(lambda plan: replace(plan.cut(2), end=(2, 2, 2)), _claims(3)),
    by=AUDIT,
    finding="interlock",
    record="delta.a@7",
)
CASES.add(
    "gate + controller",
    "joined commits",
    "a gate's delta of later is merged in an earlier commit",
    again(lambda plan: plan.joined(1)),
    by=AUDIT,
    finding="interlock",
    record="delta.a@3 against global@2",
)


def all_gates() -> Played:
    """Every gate and the controller: another run from the same genesis, and nobody is left to contradict it."""
    exchange = Live(season().manifest)
    genesis = genesis_of(honest())
    assert exchange.genesis_sha256 == genesis
    for boundary in range(3):
        exchange.delta(boundary, vector=np.full(96, 0.01))
    exchange.commit((SECOND,))
    exchange.close()
    return audit(exchange.topics)


CASES.add(
    "gate + controller",
    "rollback with fresh close",
    "all gates and the controller write another run from one genesis",
    all_gates,
    reason="whoever holds all keys of the exchange writes what he likes; a witness of somebody else shows it",
)
