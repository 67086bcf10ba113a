"""What the gate's derivation believes, and what it refuses, of a boundary's own records."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.ledger import PendingDelta
from echelon.messages.boundary import (
    INPUTS,
    Adopt,
    Cohort,
    Masked,
    Model,
    Phase,
    SealedDelta,
    Sealing,
    Version,
    Void,
    VoidReason,
    Window,
)
from echelon.messages.exchange import Payload, WindowSummary
from echelon.messages.handshake import (
    SHARE_BYTES,
    Included,
    RevealedShare,
    Signatures,
    Unmask,
    Upload,
)
from echelon.messages.wire import Message, Reason
from echelon.rounds.gate.derivation import MAX_WAITING, BoundaryLog
from echelon.rounds.gate.early_inputs import EARLY_INPUTS, RECORD_COST
from echelon.rounds.gate.facts import CommitFacts
from echelon.secagg.faults import InputRefused
from tests.worlds.boundary_world import DERIVED, DIM, Line, World, manifest_for

Change = Callable[[Line], Line | None]


@cache
def history() -> World:
    """Four windows, two deltas, and a commit that merges the first."""
    world = World(5)
    world.genesis()
    for number in range(4):
        world.window()
        if number == 1:
            world.commit(np.full(DIM, 0.25, np.float32), (0,))
    world.window()
    return world


def log_of(world: World) -> BoundaryLog:
    """A derivation that has read all of `global`, and nothing of the boundary."""
    log = BoundaryLog(world.manifest, world.roster, DIM)
    for facts, adapter in world.known:
        log.learn(facts, adapter)
    return log


def feed(log: BoundaryLog, lines: list[Line]) -> None:
    for line in lines:
        if line.topic in DERIVED:
            log.feed(line.incoming())
            log.versions.clear()


def changed(world: World, change: Change) -> list[Line]:
    found = []
    for line in world.log:
        new = change(line)
        if new is not None:
            found.append(new)
    return found


def of(kind: type[Message], number: int, **fields: object) -> Change:
    """Change these fields of the message of this kind in that window (or with that seq)."""

    def change(line: Line) -> Line:
        message = line.message
        place = getattr(message, "window", getattr(message, "seq", getattr(message, "version", None)))
        if isinstance(message, kind) and place == number:
            return replace(line, message=message.model_copy(update=fields))
        return line

    return change


def contradicts(lines: list[Line], match: str, *, deltas: int, log: BoundaryLog | None = None) -> BoundaryLog:
    """The history is refused, from then on for good, and only so many deltas were derived before."""
    world = history()
    log = log or log_of(world)
    with pytest.raises(ProtocolError, match=match):
        feed(log, lines)
    assert len(log.sealed) == deltas
    # Nothing after a contradiction is derived, whatever else is read.
    for line in world.log:
        if line.topic in DERIVED:
            with pytest.raises(ProtocolError):
                log.feed(line.incoming())
    assert len(log.sealed) == deltas
    for delta in world.deltas()[deltas:]:
        assert log.check(delta) is None
    return log


def test_an_honest_history_gives_the_deltas_that_the_aggregator_sealed() -> None:
    world = history()
    log = log_of(world)
    feed(log, world.log)
    assert [delta.seq for delta in world.deltas()] == [0, 1]
    for line in world.log:
        if isinstance(line.message, SealedDelta):
            derived = log.check(line.message)
            assert derived is not None
            assert derived.payload == line.payload
    assert log.window == len(world.windows()) == 5
    assert log.ledger.pending.keys() == {1}
    aggregator = world.aggregator.ledger
    assert aggregator is not None
    assert np.array_equal(log.ledger.remainder, aggregator.remainder)


@pytest.mark.parametrize("order", ["inputs first", "control first", "reversed topics"])
def test_topics_may_be_read_at_any_pace_against_each_other(order: str) -> None:
    world = history()
    rank = {
        "inputs first": {"handshake": 0, "masked": 1, "control": 2},
        "control first": {"control": 0, "handshake": 1, "masked": 2},
        "reversed topics": {"masked": 0, "control": 1, "handshake": 2},
    }[order]
    lines = sorted((line for line in world.log if line.topic in DERIVED), key=lambda line: rank[line.topic])
    log = log_of(world)
    feed(log, lines)
    assert sorted(log.sealed) == [0, 1]
    assert all(log.check(delta) is not None for delta in world.deltas())


def test_repeats_change_nothing() -> None:
    world = history()
    log = log_of(world)
    feed(log, [line for line in world.log for _ in range(2)])
    feed(log, world.log)
    assert sorted(log.sealed) == [0, 1]
    assert log.window == 5
    assert all(log.check(delta) is not None for delta in world.deltas())


# ---- an aggregator that lies -----------------------------------------------------------------------------


def forged_summary() -> WindowSummary:
    real = history().windows()[1].summary
    return real.model_copy(update={"n": real.n + 1})


@pytest.mark.parametrize(
    "fields",
    [
        {"sum_sha256": bytes(32)},
        {"included": ("d0", "d1", "d2")},
        {"summary": "forged"},
    ],
    ids=["another sum", "another included set", "another summary"],
)
def test_a_forged_window_record_is_refused(fields: dict[str, object]) -> None:
    if "summary" in fields:
        fields = {"summary": forged_summary()}
    lines = changed(history(), of(Window, 1, **fields))
    contradicts(lines, "not what its devices' records add up to", deltas=0)


def test_a_delta_that_is_not_what_the_windows_add_up_to_is_refused() -> None:
    lines = changed(history(), of(Sealing, 1, payload_sha256=bytes(32)))
    contradicts(lines, "delta 1 is not what the windows before it add up to", deltas=1)


def test_a_delta_under_another_number_is_refused() -> None:
    lines = changed(history(), of(Sealing, 1, seq=2))
    contradicts(lines, "delta 2 is not", deltas=1)


def test_sealing_before_any_window_is_refused() -> None:
    world = history()
    [first, *_] = [line for line in world.log if isinstance(line.message, Sealing)]
    contradicts([first, *world.log], "nothing to seal", deltas=0)


def test_sealing_at_another_point_of_the_history_is_refused() -> None:
    """One window earlier than the aggregator sealed it, the same delta is another delta."""
    world = history()
    [sealing, *_] = [line for line in world.log if isinstance(line.message, Sealing)]
    lines = [line for line in world.log if line is not sealing]
    place = next(i for i, line in enumerate(lines) if isinstance(line.message, Window)) + 1
    contradicts([*lines[:place], sealing, *lines[place:]], "delta 0 is not", deltas=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": Payload.of(b"x", b"y")},
        {"base_commit": 1},
        {"exponent": -3},
        {"windows": ()},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_proposal_that_differs_from_what_was_derived_is_refused(fields: dict[str, object]) -> None:
    world = history()
    log = log_of(world)
    feed(log, world.log)
    good = world.deltas()[0]
    with pytest.raises(ProtocolError, match="delta 0 is not what the boundary's windows add up to"):
        log.check(good.model_copy(update=fields))
    assert log.check(good) is not None
    assert log.check(good.model_copy(update={"seq": 9})) is None


@pytest.mark.parametrize(
    ("stale", "fields", "match"),
    [
        (None, {"merged": (), "returned": (0,)}, "by `global` they are \\[0\\]"),
        (None, {"merged": (), "dropped": (0,)}, "by `global` they are \\[0\\]"),
        (True, {}, "by `global` they are \\[\\]"),
        (False, {"merged": (), "returned": (0,)}, "what the exchange did not say"),
        (True, {"merged": (), "dropped": (0,)}, "what the exchange did not say"),
        (True, {"merged": ()}, "passes over the refusal of delta 0"),
    ],
)
def test_an_adoption_that_the_exchange_did_not_say_is_refused(
    stale: bool | None, fields: dict[str, object], match: str
) -> None:
    """Else a boundary could count a merged delta again, or drop one that it does not like any more."""
    world = history()
    [adopt] = [line.message for line in world.log if isinstance(line.message, Adopt)]
    assert isinstance(adopt, Adopt)
    lines = changed(world, of(Adopt, adopt.version, **fields))
    log = BoundaryLog(world.manifest, world.roster, DIM)
    for facts, adapter in world.known:
        if stale is not None and facts.commit == 1:
            log.refuse(0, stale)
        log.learn(facts if stale is None else replace(facts, merged=()), adapter)
    contradicts(lines, match, deltas=1, log=log)


@pytest.mark.parametrize("commit", [1, 2, 7])
def test_the_base_of_a_delta_is_the_newest_commit_that_was_adopted_whatever_the_boundary_says(
    commit: int,
) -> None:
    """A newer base than the one that was trained from would make a late delta count in full."""
    world = history()
    [adopt] = [line.message for line in world.log if isinstance(line.message, Adopt)]
    assert isinstance(adopt, Adopt)
    lines = changed(world, of(Adopt, adopt.version, commit=commit))
    log = log_of(world)
    if commit == adopt.commit:
        feed(log, lines)
        assert log.sealed[1].base_commit == 1
    else:  # no such commit stands on `global`: nothing after it is ever derived
        feed(log, lines)
        assert sorted(log.sealed) == [0]
        assert log.blocked
    # Adopted without one of the commits in between, or before any: the adapter is not the one that is named.
    log = log_of(world)
    log.learn(
        CommitFacts(2, (), hashlib.sha256(np.ones(DIM, "<f4").tobytes()).digest()), np.ones(DIM, np.float32)
    )
    if commit == 2:
        with pytest.raises(ProtocolError, match="is not the adapter that the boundary's records lead to"):
            feed(log, lines)


def test_an_adoption_waits_until_the_exchange_was_read() -> None:
    world = history()
    log = BoundaryLog(world.manifest, world.roster, DIM)
    log.learn(*world.known[0])
    feed(log, world.log)
    assert sorted(log.sealed) == [0]
    assert not log.quiescent
    log.learn(*world.known[1])
    log.progress()
    assert sorted(log.sealed) == [0, 1]


def test_an_adapter_that_was_not_kept_is_asked_for() -> None:
    world = history()
    log = BoundaryLog(world.manifest, world.roster, DIM)
    log.learn(*world.known[0])
    for facts, _ in world.known[1:]:
        log.learn(facts, None)
    feed(log, world.log)
    assert log.wanted == world.known[1][0]
    assert sorted(log.sealed) == [0]
    log.take_adapter(1, world.known[1][1])
    log.progress()
    assert log.wanted is None
    assert sorted(log.sealed) == [0, 1]


def test_every_version_is_derived_and_is_what_the_aggregator_published() -> None:
    world = history()
    log = log_of(world)
    derived = {}
    for line in world.log:
        if line.topic in DERIVED:
            log.feed(line.incoming())
            derived |= {one.version: (one.commit, one.sha256) for one in log.versions}
            log.versions.clear()
    published = {
        line.message.version: (line.message.commit, hashlib.sha256((line.payload or b"")[: 4 * DIM]).digest())
        for line in world.log
        if isinstance(line.message, Model)
    }
    assert derived == published
    assert sorted(derived) == list(range(len(derived)))


def test_a_version_of_the_aggregator_s_choice_is_refused() -> None:
    """An adapter of zeros has no gradient: whoever trains from it hides nobody."""
    dead = hashlib.sha256(bytes(4 * DIM)).digest()
    contradicts(changed(history(), of(Version, 2, sha256=dead)), "version 2 is not the adapter", deltas=1)


@pytest.mark.parametrize("kind", [Version, Window])
def test_a_version_out_of_turn_is_refused(kind: type[Message]) -> None:
    contradicts(changed(history(), of(kind, 1, version=7)), "version 7", deltas=0)


def test_a_version_that_nobody_named_stops_the_derivation() -> None:
    def without(line: Line) -> Line | None:
        return None if isinstance(line.message, Version) and line.message.version == 1 else line

    contradicts(changed(history(), without), "before the boundary adapter's version 1 was named", deltas=0)


def test_an_adoption_of_nothing_counts_only_where_a_window_ends_whose_sum_may_be_known() -> None:
    """A version of its own for every window would leave the guard of pairs without a pair."""
    world = history()
    lines = []
    for line in world.log:
        if isinstance(line.message, Cohort) and line.message.window == 1:
            bare = Adopt(commit=0, version=line.message.version + 1, merged=(), returned=(), dropped=())
            lines.append(replace(line, message=bare))
        lines.append(line)
    contradicts(lines, "changes nothing", deltas=0)


def test_a_cohort_is_on_the_version_and_the_commit_that_the_boundary_is_at() -> None:
    for fields in ({"version": 2}, {"version": 0}, {"commit": 1}):
        contradicts(changed(history(), of(Cohort, 1, **fields)), "the cohort of window 1 is on", deltas=0)


def test_a_window_out_of_turn_is_refused() -> None:
    def without(line: Line) -> Line | None:
        return None if line.window == 1 and line.topic == "control" else line

    contradicts(changed(history(), without), "opened, expected is 1|window 1 is due", deltas=0)


@pytest.mark.parametrize("kind", [Included, Signatures])
def test_a_window_without_its_rounds_is_refused(kind: type[Message]) -> None:
    def without(line: Line) -> Line | None:
        return None if isinstance(line.message, kind) and line.window == 1 else line

    contradicts(changed(history(), without), "window 1", deltas=0)


def test_two_cohorts_for_one_window_are_refused() -> None:
    world = history()
    lines = []
    for line in world.log:
        lines.append(line)
        if line.message.kind == "cohort" and line.window == 1:
            lines.append(replace(line, message=line.message.model_copy(update={"inputs": 1})))
    contradicts(lines, "a cohort of window 1", deltas=0)


def test_an_included_set_that_too_few_signed_is_refused() -> None:
    world = history()
    [real] = [line.message for line in world.log if isinstance(line.message, Signatures) and line.window == 1]
    assert isinstance(real, Signatures)
    lines = changed(world, of(Signatures, 1, entries=real.entries[:2]))
    contradicts(lines, "2 devices signed the included set", deltas=0)


def test_an_included_set_that_names_another_upload_is_refused() -> None:
    world = history()
    [real] = [line.message for line in world.log if isinstance(line.message, Included) and line.window == 1]
    assert isinstance(real, Included)
    other = Upload(device=real.entries[0].device, upload_sha256=hashlib.sha256(b"forged").digest())
    lines = changed(world, of(Included, 1, entries=(other, *real.entries[1:])))
    contradicts(lines, "did not sign the included set", deltas=0)


def test_weights_that_the_table_does_not_give_are_refused() -> None:
    world = history()
    [cohort] = [line.message for line in world.log if line.message.kind == "cohort" and line.window == 1]
    heavy = cohort.members[0].model_copy(update={"weight": 4096})  # type: ignore[attr-defined]
    lines = changed(world, of(type(cohort), 1, members=(heavy, *cohort.members[1:])))  # type: ignore[attr-defined]
    contradicts(lines, "weight 4096", deltas=0)


# ---- devices that misbehave ------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(4)])
def test_a_device_that_uploads_rubbish_first_holds_nobody_up(payload: bytes) -> None:
    """The aggregator refused it and took the good one; so does the derivation."""
    world = history()
    rubbish = Masked(window=1, payload=Payload.of(payload, b"rubbish"))
    lines = [Line("masked", 0, -1, "d2", 1, rubbish, payload), *world.log]
    log = log_of(world)
    feed(log, lines)
    assert sorted(log.sealed) == [0, 1]


def test_a_device_that_reveals_what_nobody_asked_for_holds_nobody_up() -> None:
    world = history()
    both = RevealedShare(device="d1", share=bytes(SHARE_BYTES))
    rubbish = Unmask(window=1, seeds=(both,), keys=(both,))
    log = log_of(world)
    feed(log, [Line("handshake", 0, -1, "d2", 1, rubbish, None), *world.log])
    assert sorted(log.sealed) == [0, 1]
    assert all(log.check(delta) is not None for delta in world.deltas())


def test_records_of_windows_long_past_are_forgotten() -> None:
    world = history()
    log = log_of(world)
    feed(log, world.log)
    assert log.quiescent
    feed(log, [line for line in world.log if line.topic in ("handshake", "masked")])
    assert log.quiescent


def test_what_is_no_input_of_a_window_is_refused() -> None:
    world = history()
    log = log_of(world)
    strange = Line(
        "handshake", 0, -1, "d2", 0, Void(window=0, phase=Phase.KEYS, reason=VoidReason.FLOOR), None
    )
    with pytest.raises(ProtocolError, match="not an input of a window"):
        feed(log, [strange, *world.log])
    assert log.sealed == {}


# ---- void windows, refusals, snapshots -------------------------------------------------------------------


def test_void_windows_leave_no_trace() -> None:
    world = World(5, drop=lambda sender, m: sender > "d1" and isinstance(m, Masked) and m.window == 1)
    world.genesis()
    world.window()
    world.window()
    world.round_over()
    assert [void.window for void in world.messages(Void)] == [1]  # type: ignore[attr-defined]
    for _ in range(3):
        for name in world.names:
            world.fire(name, "patience")
        world.window()
    world.derive()
    assert world.gate.window == world.aggregator.window
    deltas = world.deltas()
    assert deltas
    assert all(world.gate.check(delta) is not None for delta in deltas)
    assert 1 not in [summary.window for delta in deltas for summary in delta.windows]


@pytest.mark.parametrize("stale", [True, False])
def test_refused_deltas_are_followed(stale: bool) -> None:
    world = World(5)
    world.genesis()
    for number in range(6):
        world.window()
        if number == 2:
            world.refuse(0, stale=stale)
    world.derive()
    deltas = world.deltas()
    assert all(world.gate.check(delta) is not None for delta in deltas)
    covered = [summary.window for delta in deltas[1:] for summary in delta.windows]
    assert (0 in covered) is stale
    assert len(set(covered)) == len(covered)


def test_a_snapshot_between_windows_goes_on_where_it_stood() -> None:
    world = history()
    relevant = [line for line in world.log if line.topic in DERIVED]
    log = log_of(world)
    taken = 0
    for place, line in enumerate(relevant):
        log.feed(line.incoming())
        if not log.quiescent or log.sealed:
            log.sealed.clear()
            continue
        taken += 1
        again = log_of(world)
        again.restore(log.snapshot())
        assert again.snapshot() == log.snapshot()
        feed(again, relevant[place + 1 :])
        for delta in world.deltas():
            if delta.seq >= log.ledger.next_seq:
                assert again.check(delta) is not None
        assert again.window == 5
    assert taken > 10


def test_a_snapshot_in_the_middle_of_a_window_would_lose_something() -> None:
    world = history()
    log = log_of(world)
    states = set()
    for line in world.log:
        if line.topic in DERIVED:
            log.feed(line.incoming())
            log.versions.clear()
            states.add((line.message.kind, log.quiescent))
    assert ("cohort", True) not in states
    assert ("masked", True) not in states
    assert ("window.open", True) in states


def test_decisions_that_wait_for_ever_are_bounded() -> None:
    world = World(3, manifest=manifest_for())
    log = BoundaryLog(world.manifest, world.roster, DIM)
    adopt = Adopt(commit=1, version=0, merged=(0,), returned=(), dropped=())
    lines = [
        Line("control", 0, offset, "ward.aggregator", 0, adopt, None) for offset in range(MAX_WAITING + 1)
    ]
    feed(log, lines[:MAX_WAITING])
    with pytest.raises(ProtocolError, match=f"{MAX_WAITING} decisions wait"):
        feed(log, lines[MAX_WAITING:])


# ---- what is kept, and of whom ---------------------------------------------------------------------------


def uploads(world: World, windows: Iterable[int], sender: str = "") -> list[Line]:
    """Masked updates that nobody asked for: a real one of the sender, under other numbers, each with other bytes."""
    real = next(
        line for line in world.log if isinstance(line.message, Masked) and sender in ("", line.sender)
    )
    assert real.payload is not None
    found = []
    for number, window in enumerate(windows):
        payload = number.to_bytes(4, "big") + real.payload[4:]
        message = Masked(window=window, payload=Payload.of(payload, b"%d" % number))
        found.append(Line("masked", 0, 100_000 + number, real.sender, window, message, payload))
    return found


def most_of_one() -> int:
    return EARLY_INPUTS * (RECORD_COST + 4 * (DIM + 32))


@pytest.mark.parametrize("windows", ["one each", "all of the next", "all of the due one"])
def test_endless_uploads_of_one_device_are_kept_within_its_bound(windows: str) -> None:
    """Before it had one, 800 uploads of windows to come held half a gigabyte of a gate."""
    world = history()
    log = log_of(world)
    numbers = {"one each": range(800), "all of the next": [1] * 800, "all of the due one": [0] * 800}[windows]
    refused = []
    first, *rest = uploads(world, numbers)
    for line in (first, *rest):
        try:
            log.feed(line.incoming())
        except InputRefused as error:
            refused.append(error.reason)
        assert log.early_bytes <= most_of_one()
    assert len(refused) > 700
    assert set(refused) == {Reason.OUT_OF_ORDER}
    assert log.early_bytes > most_of_one() / 2
    # The others' inputs have places of their own.
    other = next(
        line for line in world.log if isinstance(line.message, Masked) and line.sender != first.sender
    )
    before = log.early_bytes
    log.feed(other.incoming())
    assert log.early_bytes > before


def demanded(log: BoundaryLog, lines: list[Line], most: int = 0) -> int:
    """Read as a gate does, a topic at a time and only what is wanted; how many inputs were refused."""
    topics = {topic: deque(line for line in lines if line.topic == topic) for topic in ("control", *INPUTS)}
    refused = 0
    while True:
        ready = [topic for topic in INPUTS if topic in log.wants and topics[topic]]
        if not log.blocked and topics["control"]:
            ready = ["control"]
        if not ready:
            return refused
        try:
            log.feed(topics[ready[0]].popleft().incoming())
        except InputRefused:
            refused += 1
        assert log.early_bytes <= most


def test_whoever_reads_what_is_wanted_keeps_nothing_that_is_early() -> None:
    world = history()
    log = log_of(world)
    assert demanded(log, world.log) == 0
    assert log.window == 5
    assert sorted(log.sealed) == [0, 1]


def test_uploads_of_windows_to_come_between_those_of_a_window_are_refused() -> None:
    """They were sent before anybody could have them; the window closes without them, and so do the next."""
    world = history()
    log = log_of(world)
    first = next(place for place, line in enumerate(world.log) if line.topic == "masked")
    early = uploads(world, range(1, 801))
    lines = [*world.log[:first], *early, *world.log[first:]]
    assert demanded(log, lines) == 800
    assert log.window == 5
    assert sorted(log.sealed) == [0, 1]


def test_other_uploads_of_the_due_window_than_those_included_are_not_kept() -> None:
    world = history()
    log = log_of(world)
    first = next(place for place, line in enumerate(world.log) if line.topic == "masked")
    lines = [*world.log[:first], *uploads(world, [0] * 800), *world.log[first:]]
    assert demanded(log, lines) == 0
    assert log.window == 5
    assert sorted(log.sealed) == [0, 1]


def test_after_a_contradiction_nothing_is_kept() -> None:
    world = history()
    log = log_of(world)
    with pytest.raises(ProtocolError):
        feed(log, changed(world, of(Window, 1, sum_sha256=bytes(32))))
    for line in [*uploads(world, range(800)), *world.log]:
        if line.topic in DERIVED:
            with pytest.raises(ProtocolError):
                log.feed(line.incoming())
    assert (log.early_bytes, log.blocked) == (0, False)


def test_deltas_are_not_sealed_beyond_what_may_be_undecided() -> None:
    """Each keeps its payload until it crosses; an aggregator that never proposes one could seal for ever."""
    world = history()
    log = log_of(world)
    second = [place for place, line in enumerate(world.log) if isinstance(line.message, Sealing)][1]
    feed(log, world.log[:second])
    for seq in (7, 8):
        log.ledger.pending[seq] = PendingDelta(np.zeros(DIM), 0, ())
    with pytest.raises(ProtocolError, match="sealed while 2 are undecided"):
        feed(log, world.log[second:])
    assert sorted(log.sealed) == [0]
