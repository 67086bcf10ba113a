from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import ProtocolError, StateError
from echelon.laws.delta_codec import encode
from echelon.messages.exchange import (
    MAX_MERGED,
    MAX_WINDOW_TOKENS,
    CloseReason,
    Commit,
    Delta,
    DeltaCodec,
    Genesis,
    Payload,
    RefusalReason,
)
from echelon.messages.manifest import OuterKind, RunManifest, Weighting
from echelon.outer.base import OuterState
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.controller.drafts import CommitDraft, CommitMismatch
from echelon.rounds.controller.limits import examine_window
from tests.audit.synthetic import RUN, terms, window

DIM = 96


def core_of(manifest: RunManifest) -> ControllerCore:
    core = ControllerCore(manifest, np.zeros(DIM, np.float32))
    wrote(core, Genesis.model_construct())
    return core


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def wrote(core: ControllerCore, message: Genesis | Commit) -> None:
    """`global` has one manifest for each commit here, with a digest and a root that only these tests know."""
    commit = message.commit if isinstance(message, Commit) else 0
    core.transcript.append(message, sha256(f"commit {commit}"), sha256(f"root {core.transcript.size + 1}"))


def make(
    boundary: int,
    seq: int,
    *,
    base: int = 0,
    first: int | None = None,
    count: int = 1,
    vector: np.ndarray | None = None,
    codec: DeltaCodec = DeltaCodec.INT16,
    **fields: object,
) -> tuple[Delta, bytes]:
    if vector is None:
        vector = np.random.default_rng([boundary, seq]).normal(0, 0.01, DIM)
    payload, exponent = encode(vector, codec)
    start = 10 * seq if first is None else first
    changes = {
        "windows": tuple(window(start + i) for i in range(count)),
        "codec": codec,
        "exponent": exponent,
        "sync_us": 0,
        "spacing_us": 0,
        "base_sha256": sha256(f"commit {base}"),
        "seen_size": base + 1,
        "seen_root": sha256(f"root {base + 1}"),
        "payload": Payload.of(payload, b"%d/%d" % (boundary, seq)),
        **fields,
    }
    delta = Delta.model_construct(
        run=RUN, boundary=boundary, seq=seq, base_commit=base, prefix=bytes(32), **changes
    )
    return Delta.decode(delta.encode()), payload


def record(core: ControllerCore, draft: CommitDraft, **changes: object) -> Commit:
    commit = Commit(
        run=RUN,
        index=1,
        commit=draft.commit,
        merged=draft.merged,
        heads=(),
        pace=draft.pace,
        measured=draft.measured,
        tokens=draft.tokens,
        adapter_sha256=draft.adapter_sha256,
        state_sha256=draft.state_sha256,
        payload=Payload.of(draft.payload(), b"commit"),
        prefix=bytes(32),
    )
    return commit.model_copy(update=changes)


def advance(core: ControllerCore, measured: tuple[int, ...] = ()) -> Commit:
    commit = record(core, core.commit(measured))
    core.apply(commit)
    wrote(core, commit)
    return commit


def test_a_delta_counts_once() -> None:
    core = core_of(terms())
    delta, payload = make(0, 0)
    assert core.offer(delta, payload, 1) is None
    assert core.offer(delta, payload, 9) is None
    assert core.pending == ((0, 0),)
    other, changed = make(0, 0, vector=np.ones(DIM) * 0.01)
    assert core.offer(other, changed, 2) is RefusalReason.FORK
    advance(core)
    assert core.offer(delta, payload, 1) is None
    assert core.pending == ()
    assert core.offer(*make(0, 2), 3) is RefusalReason.BAD_SEQUENCE
    assert core.next_seq(0) == 1
    assert core.offer(*make(0, 1), 3) is None


def test_when_a_commit_is_due() -> None:
    core = core_of(terms(deltas_per_commit=2))
    assert not core.due(True)
    core.offer(*make(0, 0), 1)
    assert not core.due(False)
    assert core.due(True)
    core.offer(*make(1, 0), 1)
    assert core.due(False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"base": 1}, RefusalReason.UNKNOWN_BASE),
        ({"codec": DeltaCodec.INT32}, RefusalReason.BAD_PAYLOAD),
        ({"exponent": 10**6}, RefusalReason.BAD_PAYLOAD),
        (
            {"payload": Payload(transfer=bytes(16), length=2 * DIM, sha256=bytes(32))},
            RefusalReason.BAD_PAYLOAD,
        ),
        ({"payload": Payload(transfer=bytes(16), length=1, sha256=bytes(32))}, RefusalReason.BAD_PAYLOAD),
        ({"vector": np.full(DIM + 2, 0.1)}, RefusalReason.BAD_PAYLOAD),
        ({"vector": np.full(DIM, 11.0)}, RefusalReason.LIMIT),
        ({"count": 5}, RefusalReason.LIMIT),
        ({"windows": (window(1), window(1))}, RefusalReason.BAD_SEQUENCE),
        ({"windows": (window(1, heads=3, n=30),)}, RefusalReason.FLOOR),
        ({"windows": (window(1, eval_commit=1, eval_loss=2.0),)}, RefusalReason.UNKNOWN_BASE),
    ],
)
def test_what_is_refused_uses_its_number_up(fields: dict[str, object], reason: RefusalReason) -> None:
    core = core_of(terms())
    assert core.offer(*make(0, 0, **fields), 1) is reason  # type: ignore[arg-type]
    assert core.pending == ()
    assert core.next_seq(0) == 1
    assert core.offer(*make(0, 1), 1) is None


def test_a_fault_of_the_log_is_a_refusal() -> None:
    core = core_of(terms())
    delta, payload = make(0, 0)
    assert core.offer(delta, payload, 1, fault=RefusalReason.BAD_PREFIX) is RefusalReason.BAD_PREFIX
    assert core.next_seq(0) == 1


def test_the_limit_leaves_room_for_every_honest_delta() -> None:
    """R_max windows at the clip, with the residue of the delta before: not refused."""
    core = core_of(terms(windows_max=4))
    vector = np.zeros(DIM)
    vector[0] = 4 * 1.0 + 1e-3
    assert core.offer(*make(0, 0, vector=vector, count=4), 1) is None


def test_windows_come_once() -> None:
    core = core_of(terms(staleness=(256,)))
    assert core.offer(*make(0, 0, first=1), 1) is None
    assert core.offer(*make(0, 1, first=1), 2) is RefusalReason.BAD_SEQUENCE
    assert core.offer(*make(1, 0, first=1), 1) is None, "windows are numbered within a boundary"
    advance(core)
    assert core.offer(*make(0, 2, base=0, first=50), 3) is RefusalReason.STALE
    assert core.offer(*make(0, 3, base=1, first=50), 4) is None, "windows of a stale delta come again"
    assert core.offer(*make(0, 4, base=1, first=50), 5) is RefusalReason.BAD_SEQUENCE


def test_a_boundary_has_at_most_p_deltas_waiting() -> None:
    core = core_of(terms(pending_max=2))
    assert [core.offer(*make(0, seq), seq) for seq in range(3)] == [None, None, RefusalReason.LIMIT]
    assert core.offer(*make(1, 0), 0) is None


def test_deltas_of_other_runs_are_a_mistake_of_the_caller() -> None:
    core = core_of(terms())
    delta, payload = make(0, 0)
    for changes in ({"run": b"\1" * 16}, {"boundary": 2}):
        with pytest.raises(ProtocolError):
            core.offer(delta.model_copy(update=changes), payload, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"weight": 0, "weight2": 0}, RefusalReason.FLOOR),
        # One device holds nearly all of the weight: the sum hides it no better than two would.
        ({"weight": 10240, "weight2": 10000**2}, RefusalReason.FLOOR),
        ({"weight2": 1}, RefusalReason.LIMIT),
        ({"heads": 33, "weight2": 10240**2 // 4}, RefusalReason.LIMIT),
        ({"n": 65}, RefusalReason.LIMIT),
        ({"n": 0}, RefusalReason.LIMIT),
        ({"n": 39}, RefusalReason.LIMIT),
        ({"tokens": MAX_WINDOW_TOKENS + 1}, RefusalReason.LIMIT),
    ],
)
def test_sums_that_no_cohort_above_the_floor_has(
    changes: dict[str, int], reason: RefusalReason | None
) -> None:
    found = window(1).model_copy(update=changes)
    assert examine_window(found, terms().secure, report_loss=False) is reason


@given(st.lists(st.tuples(st.integers(1, 16), st.sampled_from((256, 181))), min_size=4, max_size=32))
def test_honest_cohorts_pass_the_floor(members: list[tuple[int, int]]) -> None:
    """Whatever Σw ≥ k_min·max w allows inside the boundary, the exchange allows too."""
    secure = terms().secure
    weights = [n * s for n, s in members]
    if sum(weights) < secure.k_min * max(weights):
        return
    found = window(1).model_copy(
        update={
            "heads": len(members),
            "n": sum(n for n, _ in members),
            "weight": sum(weights),
            "weight2": sum(w * w for w in weights),
        }
    )
    assert examine_window(found, secure, report_loss=False) is None


def test_losses_cross_only_when_the_terms_say_so() -> None:
    core = core_of(terms(report_loss=False))
    told = (window(1, eval_loss=2.0),)
    assert core.offer(*make(0, 0, windows=told), 1) is RefusalReason.LIMIT
    assert core_of(terms()).offer(*make(0, 0, windows=told), 1) is None


@pytest.mark.slow
@given(st.permutations([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]))
def test_the_order_of_arrival_changes_no_bit(order: list[tuple[int, int]]) -> None:
    reference, core = core_of(terms(boundaries=3)), core_of(terms(boundaries=3))
    for boundary, seq in sorted(order):
        reference.offer(*make(boundary, seq), seq)
    taken = {0: 0, 1: 0, 2: 0}
    for boundary, _ in order:
        core.offer(*make(boundary, taken[boundary]), taken[boundary])
        taken[boundary] += 1
    assert core.commit().merged == reference.commit().merged
    assert core.commit().adapter.tobytes() == reference.commit().adapter.tobytes()


def test_more_than_fit_wait_for_the_next_commit() -> None:
    core = core_of(terms(boundaries=3, pending_max=64, staleness=(256,)))
    half = MAX_MERGED // 2
    for boundary, count in ((0, half), (1, half), (2, 3)):
        for seq in range(count):
            core.offer(*make(boundary, seq), seq)
    draft = core.commit()
    assert len(draft.merged) == MAX_MERGED
    assert [m.seq for m in draft.merged if m.boundary == 2] == [0, 1, 2], "no boundary is starved"
    commit = record(core, draft)
    dropped = core.apply(commit)
    wrote(core, commit)
    assert [(d.boundary, d.seq, d.reason) for d in dropped] == [
        (boundary, seq, RefusalReason.STALE)
        for boundary, seq in ((0, half - 1), (1, half - 2), (1, half - 1))
    ]
    assert core.pending == ()
    assert core.offer(*make(0, half, base=1, first=10 * (half - 1)), 99) is None


def test_staleness_and_weight() -> None:
    core = core_of(terms(weighting=Weighting.TOKENS))
    core.offer(*make(0, 0), 1)
    advance(core)
    core.offer(*make(0, 1, base=0, count=2), 2)
    core.offer(*make(1, 0, base=1), 2)
    merged = advance(core).merged
    assert [(m.boundary, m.seq, m.staleness, m.weight) for m in merged] == [
        (0, 1, 1, 80 * 181),
        (1, 0, 0, 40 * 256),
    ]
    assert core.tokens == 4 * 4096


def test_apply_accepts_only_what_it_derives() -> None:
    core = core_of(terms(kind=OuterKind.NESTEROV))
    with pytest.raises(ProtocolError):
        core.commit()
    core.offer(*make(0, 0), 1)
    draft = core.commit((7,))
    good = record(core, draft)
    for changes in (
        {"commit": 2},
        {"merged": (draft.merged[0].model_copy(update={"weight": 1}),)},
        {"tokens": 0},
        {"adapter_sha256": bytes(32)},
        {"state_sha256": bytes(32)},
        {"pace": draft.pace.model_copy(update={"mu_ppm": 1})},
        {"payload": good.payload.model_copy(update={"length": 1})},
        {"payload": good.payload.model_copy(update={"sha256": bytes(32)})},
    ):
        with pytest.raises(CommitMismatch):
            core.apply(good.model_copy(update=changes))
        assert (core.newest, core.pending) == (0, ((0, 0),))
    assert core.apply(good) == ()
    assert core.newest == 1
    with pytest.raises(CommitMismatch, match="commit is 1"):
        core.apply(good)
    with pytest.raises(CommitMismatch, match="merged"):
        core.apply(good.model_copy(update={"commit": 2}))


@pytest.mark.parametrize("kind", [OuterKind.NESTEROV, OuterKind.FEDADAM, OuterKind.CORRECTED])
def test_a_brief_state_names_the_same_commits_and_another_state(kind: OuterKind) -> None:
    """Without the numbers of the optimiser's state a commit has the same adapter, and its digest no float64 array."""
    cores = [core_of(terms(kind=kind, brief_state=brief)) for brief in (False, True)]
    for seq in range(3):
        for core in cores:
            core.offer(*make(0, seq, base=core.newest), seq)
        whole, brief = (advance(core) for core in cores)
        assert whole.adapter_sha256 == brief.adapter_sha256
        assert whole.state_sha256 != brief.state_sha256
    outer = cores[1]._outer
    assert isinstance(outer, OuterState)
    assert outer.begun is None
    moved = replace(outer, first=outer.first + 1.0)
    assert moved.brief() == outer.brief()
    assert moved.digest() != outer.digest()
    counted = replace(outer, counted=outer.counted + 1)
    assert counted.brief() != outer.brief()


def test_another_number_of_counted_deltas_is_another_brief_state() -> None:
    core = core_of(terms(kind=OuterKind.NESTEROV))
    core.offer(*make(0, 0), 1)
    draft = core.commit()
    core._next = None
    core._outer = replace(core._outer, counted=1)
    with pytest.raises(CommitMismatch):
        core.apply(record(core, draft))


def test_tokens_never_leave_their_field() -> None:
    core = core_of(terms())
    core.tokens = (1 << 63) - 2
    core.offer(*make(0, 0), 1)
    assert advance(core).tokens == (1 << 63) - 1


def test_evaluation_best_and_patience() -> None:
    core = core_of(terms(patience=2))
    assert core.best() is None
    for number, losses in enumerate([(3.0, 3.0), (2.0, 2.0), (2.5, 2.0), (2.2, 2.2)]):
        for boundary, loss in enumerate(losses):
            told = (window(number, eval_commit=number, eval_loss=loss),)
            assert core.offer(*make(boundary, number, base=number, windows=told), number) is None
            if boundary == 0 and number == 0:
                assert core.evaluations() == ()
        assert core.finished() is None
        advance(core)
    best = core.best()
    assert best is not None
    assert (best.commit, best.mean) == (1, 2)
    assert [e.commit for e in core.evaluations()] == [0, 1, 2, 3]
    assert core.finished() is CloseReason.PATIENCE


def test_budgets() -> None:
    for fields, before, after in (
        ({"commits": 1}, None, CloseReason.COMMITS),
        ({"tokens": 4096}, None, CloseReason.TOKENS),
        ({"tokens": 4097}, None, None),
        ({"seconds": 10}, None, None),
        ({}, None, None),
    ):
        core = core_of(terms(**fields))  # type: ignore[arg-type]
        assert core.finished() is before
        core.offer(*make(0, 0), 1)
        advance(core)
        assert core.finished(9) is after
    assert core_of(terms(seconds=10)).finished(10) is CloseReason.SECONDS


@given(st.integers(0, 12), st.sampled_from(list(OuterKind)))
@settings(max_examples=30)
def test_a_restored_core_goes_on_as_if_nothing_had_happened(cut: int, kind: OuterKind) -> None:
    manifest = terms(kind=kind, staleness=(256, 128))
    steps = [
        (0, 0, 0),
        (1, 0, 0),
        None,
        (0, 1, 0),
        (0, 2, 1),
        None,
        (1, 1, 0),
        None,
        (1, 2, 1),
        (0, 3, 3),
        None,
        None,
    ]
    whole, core = core_of(manifest), core_of(manifest)
    for number, step in enumerate(steps):
        if number == cut:
            core = ControllerCore.restore(manifest, core.snapshot(), transcript=core.transcript)
        for one in (whole, core):
            if step is None:
                if one.pending:
                    advance(one, (number,))
            else:
                one.offer(*make(step[0], step[1], base=step[2]), number)
    assert core.snapshot() == whole.snapshot()
    assert core.adapter.tobytes() == whole.adapter.tobytes()


def test_snapshots_are_checked() -> None:
    core = core_of(terms())
    data = core.snapshot()
    with pytest.raises(StateError, match="damaged"):
        ControllerCore.restore(terms(), data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StateError, match="other terms"):
        ControllerCore.restore(terms(patience=1), data)


@pytest.mark.parametrize(
    "adapter", [np.zeros(DIM + 1, np.float32), np.zeros(DIM, np.float64), np.full(DIM, np.nan, np.float32)]
)
def test_an_adapter_that_does_not_fit_is_refused(adapter: np.ndarray) -> None:
    with pytest.raises(ProtocolError):
        ControllerCore(terms(), adapter)


@pytest.mark.parametrize(
    "change", [lambda fields: fields[:-1], lambda fields: [*fields, 0], lambda fields: [0, *fields[1:]]]
)
def test_a_snapshot_with_a_field_missing_or_added_or_of_another_type_is_refused(
    change: Callable[[list[object]], list[object]],
) -> None:
    snapshot = core_of(terms()).snapshot()
    head = snapshot.index(b"\x00") + 1
    body = msgpack.packb(change(msgpack.unpackb(snapshot[head + 32 :])))
    with pytest.raises(StateError, match="cannot be read"):
        ControllerCore.restore(terms(), snapshot[:head] + hashlib.sha256(body).digest() + body)
