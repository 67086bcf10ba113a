"""The boundary's adapter alone: what raises its version, what is published of it, and what waits."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from echelon.errors import ProtocolError, StateError
from echelon.laws.versions import largest_step
from echelon.messages.boundary import Adopt, Model, SealedDelta, Sealing, Version, Window
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Message
from echelon.rounds.aggregator.events import BoundaryCommit, RefusedDelta
from echelon.rounds.aggregator.merging import BoundaryAdapter
from echelon.rounds.effects import Effect, Publish
from tests.memory import traced
from tests.worlds.boundary_world import DIM, manifest_for
from tests.worlds.drift_world import window

ONE = np.ones(DIM, np.float32)


def commit(number: int, adapter: np.ndarray, *merged: int, tokens: int = 0) -> BoundaryCommit:
    """At a pace of two windows a delta."""
    pace = manifest_for().pace
    return BoundaryCommit(number, adapter, merged, pace, tokens, b"commit %d" % number)


def begun(manifest: RunManifest | None = None) -> BoundaryAdapter:
    adapter = BoundaryAdapter(manifest or manifest_for(windows=2, windows_max=6, pending_max=2), "ward")
    adapter.begin(commit(0, np.zeros(DIM, np.float32)), 0)
    return adapter


def closed(adapter: BoundaryAdapter, number: int, moved: np.ndarray = ONE) -> list[Effect]:
    """A window that moves the adapter by that."""
    summary, mean = window(number, [moved.astype(np.float64)] * 3, [256] * 3)
    record = Window(
        window=number, version=adapter.version + 1, included=("d0", "d1", "d2"), sum_sha256=bytes(32),
        summary=summary, inputs=(0, 0),
    )  # fmt: skip
    return adapter.add_window(record, mean)


def published(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Publish)]


def test_before_genesis_there_is_nothing_to_do() -> None:
    adapter = BoundaryAdapter(manifest_for(), "ward")
    assert adapter.version == -1
    assert adapter.paused
    assert adapter.adopt(0) == []
    assert not adapter.refuse(RefusedDelta(0, stale=True))
    with pytest.raises(StateError, match="commit 1 cannot be kept before genesis"):
        adapter.hold(commit(1, ONE))
    with pytest.raises(StateError, match="no adapter to publish before genesis"):
        adapter.publish(0, anchored=True)
    with pytest.raises(StateError, match="no version to leave before genesis"):
        adapter.leave_version(0)
    with pytest.raises(ProtocolError, match="commit 1 came before genesis"):
        adapter.begin(commit(1, ONE), 0)
    with pytest.raises(StateError, match="does not lead to the version after -1"):
        closed(adapter, 0)


def test_genesis_is_version_zero_with_its_anchor_and_its_envelope() -> None:
    adapter = BoundaryAdapter(manifest_for(), "ward")
    effects = adapter.begin(commit(0, ONE), 0)
    [reached, model] = published(effects)
    digest = hashlib.sha256(ONE.tobytes()).digest()
    assert reached == Version(version=0, commit=0, sha256=digest)
    assert isinstance(model, Model)
    assert (model.version, model.anchored, model.signed, model.sha256) == (0, True, b"commit 0", digest)
    [payload] = [effect.payload for effect in effects if isinstance(effect, Publish) and effect.payload]
    assert payload == 2 * ONE.tobytes()  # the adapter, and the anchor after it
    assert adapter.digests == {0: digest}


def test_each_window_leads_to_one_version_and_no_window_leads_past_one() -> None:
    adapter = begun()
    for number in range(3):
        closed(adapter, number)
        assert adapter.version == number + 1
    summary, mean = window(3, [ONE.astype(np.float64)] * 3, [256] * 3)
    early = Window(
        window=3, version=adapter.version + 2, included=("d0",), sum_sha256=bytes(32), summary=summary, inputs=(0, 0)
    )  # fmt: skip
    with pytest.raises(StateError, match="window 3 does not lead to the version after 3"):
        adapter.add_window(early, mean)
    assert adapter.version == 3


def test_a_window_between_deltas_publishes_the_adapter_without_the_anchor() -> None:
    adapter = begun()
    kinds = published(closed(adapter, 0))
    assert [type(message) for message in kinds] == [Window, Version, Model]
    assert isinstance(kinds[-1], Model)
    assert (kinds[-1].anchored, kinds[-1].signed) == (False, b"")


def test_a_delta_is_sealed_with_the_window_that_makes_it_up() -> None:
    adapter = begun()
    closed(adapter, 0)
    messages = published(closed(adapter, 1))
    assert [type(message) for message in messages] == [Window, Sealing, SealedDelta, Version, Model]
    _, sealing, delta, _, _ = messages
    assert isinstance(sealing, Sealing)
    assert isinstance(delta, SealedDelta)
    assert (sealing.seq, delta.seq, delta.base_commit) == (0, 0, 0)
    assert [one.window for one in delta.windows] == [0, 1]
    assert adapter.ledger is not None
    np.testing.assert_allclose(adapter.ledger.theta(), 2 * ONE)


def test_only_the_newest_of_several_commits_is_kept_with_all_that_was_merged() -> None:
    adapter = begun()
    for number in range(4):
        closed(adapter, number)
    assert adapter.hold(commit(1, ONE, 0))
    assert not adapter.hold(commit(1, ONE, 0))
    assert adapter.hold(commit(3, 3 * ONE, 1, tokens=9))
    assert [held.commit for held in adapter.held] == [3]
    [adopt, *_] = published(adapter.adopt(4))
    assert adopt == Adopt(commit=3, version=5, merged=(0, 1), returned=(), dropped=())
    assert (adapter.held, adapter.tokens, adapter.signed) == ([], 9, b"commit 3")
    assert not adapter.hold(commit(2, ONE))  # an older one than the anchor
    assert adapter.ledger is not None
    assert np.array_equal(adapter.ledger.anchor, 3 * ONE)


def test_a_commit_is_adopted_with_the_window_that_closes_and_both_are_one_version() -> None:
    adapter = begun()
    for number in range(2):
        closed(adapter, number)
    adapter.hold(commit(1, 5 * ONE, 0))
    messages = published(closed(adapter, 2))
    assert [type(message) for message in messages] == [Window, Adopt, Version, Model]
    model = messages[-1]
    assert isinstance(model, Model)
    assert (model.version, model.commit, model.anchored, model.signed) == (3, 1, True, b"commit 1")
    assert adapter.version == 3
    assert adapter.ledger is not None
    np.testing.assert_allclose(adapter.ledger.theta(), 6 * ONE)


@pytest.mark.parametrize("stale", [True, False])
def test_a_refusal_waits_for_the_next_version_and_only_pending_deltas_have_any(stale: bool) -> None:
    adapter = begun()
    for number in range(2):
        closed(adapter, number)
    assert not adapter.refuse(RefusedDelta(7, stale=stale))
    assert adapter.refuse(RefusedDelta(0, stale=stale))
    assert adapter.version == 2  # nothing has moved yet
    messages = published(adapter.adopt(2))
    returned, dropped = ((0,), ()) if stale else ((), (0,))
    assert messages[0] == Adopt(commit=0, version=3, merged=(), returned=returned, dropped=dropped)
    # What came back is enough for a delta, which is sealed at once.
    assert (SealedDelta in map(type, messages)) is stale
    assert adapter.ledger is not None
    np.testing.assert_allclose(adapter.ledger.theta(), 2 * ONE if stale else 0 * ONE)
    assert adapter.refused == {}


def test_without_a_decision_nothing_is_adopted_and_a_version_is_left_by_a_bare_record() -> None:
    adapter = begun()
    assert adapter.adopt(0) == []
    assert adapter.version == 0
    [bare, reached, model] = published(adapter.leave_version(0))
    assert bare == Adopt(commit=0, version=1, merged=(), returned=(), dropped=())
    assert isinstance(reached, Version)
    assert isinstance(model, Model)
    assert (model.version, model.anchored) == (1, False)


def test_a_version_is_left_with_the_commit_that_waits() -> None:
    adapter = begun()
    adapter.hold(commit(1, ONE))
    [adopt, _, model] = published(adapter.leave_version(0))
    assert adopt == Adopt(commit=1, version=1, merged=(), returned=(), dropped=())
    assert isinstance(model, Model)
    assert model.anchored


def test_a_version_is_left_with_a_dropped_delta_beside_its_anchor() -> None:
    """The adapter goes back by a whole delta: from the version before, that is further than one window can move it."""
    manifest = manifest_for(windows=3, windows_max=6, pending_max=2)
    adapter, step = begun(manifest), largest_step(manifest, DIM)
    moved = np.full(DIM, 0.9 * step / np.sqrt(DIM), np.float32)
    for number in range(3):
        closed(adapter, number, moved)
    assert adapter.ledger is not None
    before = adapter.ledger.theta()
    assert adapter.refuse(RefusedDelta(0, stale=False))
    *_, model = published(adapter.leave_version(3))
    assert np.linalg.norm(adapter.ledger.theta() - before) > 1.5 * step
    assert isinstance(model, Model)
    # So a device compares it with the adapter of its commit, and not with the version before.
    assert (model.commit, model.anchored) == (0, True)


def test_a_boundary_pauses_when_deltas_are_out_and_the_next_is_full_and_goes_on_after_a_commit() -> None:
    adapter = begun()
    for number in range(6):
        assert not adapter.paused, number
        closed(adapter, number)
    assert adapter.paused
    adapter.hold(commit(1, ONE, 0))
    assert adapter.paused  # until it is adopted
    adapter.adopt(6)
    assert not adapter.paused


def test_a_boundary_pauses_when_all_that_may_come_back_fills_a_delta() -> None:
    """Everything came back and went out again in one delta: there is room for another, and none for its windows."""
    adapter = begun()
    for number in range(6):
        closed(adapter, number)
    for seq in (0, 1):
        adapter.refuse(RefusedDelta(seq, stale=True))
    adapter.adopt(6)
    assert adapter.ledger is not None
    assert (len(adapter.ledger.pending), adapter.ledger.windows) == (1, ())
    assert adapter.ledger.outstanding == 6
    assert adapter.paused


def test_at_a_barrier_the_boundary_waits_for_its_delta_and_its_model_says_so() -> None:
    manifest = manifest_for(windows=2, windows_max=6, pending_max=2)
    exchange = manifest.exchange.model_copy(update={"overlap": False})
    adapter = begun(manifest.model_copy(update={"exchange": exchange}))
    for number, waits in ((0, False), (1, True)):
        model = published(closed(adapter, number))[-1]
        assert isinstance(model, Model)
        assert model.waiting is adapter.waiting is adapter.paused is waits
    adapter.hold(commit(1, ONE, 0))
    model = published(adapter.adopt(2))[-1]
    assert isinstance(model, Model)
    assert model.waiting is adapter.waiting is adapter.paused is False


def test_digests_of_as_many_versions_are_kept_as_the_table_has_ages() -> None:
    adapter = begun(manifest_for(staleness=(256, 128)))
    for number in range(4):
        closed(adapter, number)
    assert sorted(adapter.digests) == [3, 4]


def test_a_version_is_published_with_its_anchor_from_one_copy_of_both() -> None:
    adapter, size = begun(), 1 << 19
    assert adapter.ledger is not None
    adapter.ledger.anchor, adapter.ledger.remainder = np.ones(size, np.float32), np.zeros(size)
    with traced() as peak:
        model = adapter.publish(0, anchored=True)[-1]
        assert peak() < 2.5 * 4 * size
    assert isinstance(model, Publish)
    assert np.array_equal(np.frombuffer(model.payload or b"", "<f4"), np.ones(2 * size))
