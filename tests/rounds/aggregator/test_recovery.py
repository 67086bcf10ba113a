"""An aggregator without its state file: what it derives from the topics is what it knew."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.laws.leases import first_number
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    Leave,
    Masked,
    Model,
    Ready,
    SealedDelta,
    Version,
    WindowOpen,
)
from echelon.messages.exchange import Payload
from echelon.messages.wire import Message
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.aggregator.recovery import History, HistoryReader
from echelon.rounds.effects import Effect
from echelon.rounds.gate.early_inputs import MAX_EARLY_WINDOWS, InputRefused
from tests.worlds.boundary_world import AGGREGATOR, DIM, Line, World, manifest_for

DERIVED_INPUTS = ("handshake", "masked")


class Remembered(World):
    """A world that remembers what the exchange decided, as `global` does."""

    def aggregator_takes(self, event: object) -> list[Effect]:
        if not hasattr(self, "decided"):
            self.decided: list[BoundaryCommit | RefusedDelta | Closed] = []
        assert isinstance(event, BoundaryCommit | RefusedDelta | Closed)
        self.decided.append(event)
        return super().aggregator_takes(event)

    def read_again(self, log: list[Line] | None = None) -> History:
        """Read the topics as the shell does: `global`, decisions with the inputs that each needs, then the rest."""
        log = self.log if log is None else log
        reader = HistoryReader(self.manifest, self.roster, DIM)
        for event in self.decided:
            reader.hear(event)
        inputs = {topic: [line for line in log if line.topic == topic] for topic in DERIVED_INPUTS}
        for line in log:
            if line.topic == "control":
                reader.decide(line.incoming())
                while due := [topic for topic in inputs if inputs[topic] and topic in reader.due()]:
                    reader.feed(inputs[due[0]].pop(0).incoming())
        for topic in ("model", "checkin", "delta"):
            for line in log:
                if line.topic == topic:
                    reader.take(line.incoming())
        self.unread = [line for lines in inputs.values() for line in lines]
        """Inputs that nothing was derived from; they are for the window that is due."""
        return reader.history()

    def lose_the_aggregator(self) -> None:
        """It dies with its state file; another takes over from the topics, as the shell does."""
        person = self.people[AGGREGATOR]
        core = self.new_aggregator()
        effects = core.rebuild(self.read_again())
        core.recover([line.message for line in self.log if line.topic == "control"])
        person.core, person.timers = core, {}
        self.carry_out(person, [*effects, *core.start()])
        person.position = len(self.log)
        for line in (*self.unread, *(line for line in self.log if line.topic == "versions")):
            self.give(AGGREGATOR, line.incoming())


def busy() -> Remembered:
    """Six windows, three deltas: the first was merged, the second came back, the third waits."""
    world = Remembered(5, manifest=manifest_for(windows=2, windows_max=6, pending_max=2))
    world.genesis()
    for _ in range(2):
        world.window()
    world.commit(np.full(DIM, 2.0, np.float32), (0,), tokens=500)
    for _ in range(2):
        world.window()
    world.refuse(1, stale=True)
    world.window()
    return world


def agrees(history: History, world: Remembered) -> None:
    """What was derived is what the living aggregator knows."""
    core = world.aggregator
    assert core.ledger is not None
    assert (history.window, history.version, history.bases) == (core.window, core.version, core.adapter.bases)
    assert history.ledger.remainder.tobytes() == core.ledger.remainder.tobytes()
    assert history.ledger.windows == core.ledger.windows
    assert (history.ledger.commit, history.ledger.next_seq) == (core.ledger.commit, core.ledger.next_seq)
    assert {seq: delta.value.tobytes() for seq, delta in history.ledger.pending.items()} == {
        seq: delta.value.tobytes() for seq, delta in core.ledger.pending.items()
    }
    assert {device: (at, said.offer) for device, at, said in history.ready} == {
        device: (check.offset, check.offer) for device, check in core.attendance.ready.items()
    }
    assert dict(history.served) == core.attendance.served


def test_before_the_first_window_there_is_genesis() -> None:
    world = Remembered(3)
    world.genesis()
    history = world.read_again()
    agrees(history, world)
    assert (history.window, history.version, history.versioned, history.opened) == (0, 0, 0, True)
    assert [one.commit for one in history.commits] == [0]
    assert (history.unsent, history.closed, history.assignment) == ((), None, None)


@pytest.mark.slow
@pytest.mark.parametrize("windows", range(5))
def test_after_any_number_of_windows_it_is_what_the_aggregator_knew(windows: int) -> None:
    world = Remembered(5, manifest=manifest_for(windows=2, windows_max=8, pending_max=2))
    world.genesis()
    for _ in range(windows):
        world.window()
    agrees(world.read_again(), world)


def test_commits_and_refusals_are_as_the_aggregator_took_them() -> None:
    world = busy()
    history = world.read_again()
    agrees(history, world)
    assert [one.commit for one in history.commits] == [0, 1]
    assert history.refused == {1: True}
    assert history.ledger.commit == 1


def test_what_was_adopted_while_no_window_was_under_way_counts() -> None:
    world = Remembered(5, manifest=manifest_for(windows=2, windows_max=6, pending_max=2))
    world.genesis()
    for _ in range(6):
        world.window()
    assert world.aggregator.paused
    world.commit(np.ones(DIM, np.float32), (0,))
    adopt = world.messages(Adopt)[-1]
    assert isinstance(adopt, Adopt)
    assert adopt.version == 7
    assert world.read_again().version == 7


def test_a_commit_that_was_not_adopted_yet_changes_nothing_of_the_ledger() -> None:
    world = busy()
    before = world.read_again()
    world.decided.append(BoundaryCommit(2, np.ones(DIM, np.float32), (2,), world.manifest.pace, 900))
    history = world.read_again()
    assert [one.commit for one in history.commits] == [0, 1, 2]
    assert history.ledger.commit == before.ledger.commit == 1
    assert history.ledger.pending.keys() == before.ledger.pending.keys()


def test_the_close_of_the_run_is_known() -> None:
    world = busy()
    world.decided.append(Closed(1))
    assert world.read_again().closed == 1


def without(world: Remembered, kind: type[Message], keep: int = 0) -> list[Line]:
    """The log without the last record of a kind, as if the process had died before it was sent."""
    last = [line for line in world.log if isinstance(line.message, kind)][-1 - keep]
    return [line for line in world.log if line is not last]


def test_a_delta_that_was_decided_and_not_sent_is_known_as_such() -> None:
    world = busy()
    assert world.read_again().unsent == ()
    lost = world.deltas()[-1]
    [unsent] = world.read_again(without(world, SealedDelta)).unsent
    assert (unsent.seq, unsent.base_commit, unsent.windows) == (lost.seq, lost.base_commit, lost.windows)
    [payload] = [line.payload for line in world.log if line.message is lost]
    assert unsent.payload == payload


def test_a_version_whose_digest_or_adapter_is_not_written_is_seen() -> None:
    world = busy()
    whole = world.read_again()
    assert whole.versioned == whole.version == whole.bases[-1].version
    no_model = world.read_again(without(world, Model))
    assert no_model.bases[-1].version == whole.version - 1
    no_digest = world.read_again(without(world, Version))
    assert (no_digest.version, no_digest.versioned) == (whole.version, whole.version - 1)


def test_a_window_that_was_not_opened_yet_is_seen() -> None:
    world = busy()
    assert world.read_again().opened
    assert not world.read_again(without(world, WindowOpen)).opened


def test_an_offer_is_ready_until_a_cohort_took_it() -> None:
    world = Remembered(6, cohort=4)
    world.genesis()
    world.train("d0", "d1")
    world.pump()
    assert [device for device, _, _ in world.read_again().ready] == ["d0", "d1"]
    world.train("d2", "d3")
    world.pump()
    assert world.read_again().ready == ()
    assert world.read_again().served == tuple((f"d{number}", 0) for number in range(4))


def test_who_left_is_not_ready() -> None:
    world = Remembered(6, cohort=4)
    world.genesis()
    world.train("d0", "d1")
    world.pump()
    world.inject("d0", "checkin", Leave(number=1))
    assert [device for device, _, _ in world.read_again().ready] == ["d1"]


def test_an_offer_that_a_cohort_used_is_not_ready_again_and_a_newer_one_is() -> None:
    """Of one device: the offer that was used, sent twice, and the next one, which came while the window closed."""
    world = Remembered(5)
    world.genesis()
    world.window()
    [cohort] = world.messages(Cohort)
    assert isinstance(cohort, Cohort)
    used = next(line for line in world.log if isinstance(line.message, Ready) and line.sender == "d3")
    assert isinstance(used.message, Ready)
    early = [line for line in world.log if not (isinstance(line.message, Ready) and line.at >= cohort.inputs)]
    assert world.read_again(early).ready == ()
    copy = Line("checkin", 0, cohort.inputs - 1, "d3", 0, used.message, None)
    assert world.read_again([*early, copy]).ready == ()
    # What came after the cohort was decided is a check-in, whatever its number: its device may have lost its state.
    again = Line("checkin", 0, cohort.inputs, "d3", 0, used.message, None)
    assert [at for _, at, _ in world.read_again([*early, again]).ready] == [cohort.inputs]
    newer = used.message.model_copy(update={"offer": used.message.offer + 1})
    ready = world.read_again([*early, Line("checkin", 0, cohort.inputs - 1, "d3", 0, newer, None)]).ready
    assert [(device, said.offer) for device, _, said in ready] == [("d3", newer.offer)]


def test_an_input_that_came_windows_too_early_is_refused() -> None:
    world = Remembered(3)
    world.genesis()
    reader = HistoryReader(world.manifest, world.roster, DIM)
    window = MAX_EARLY_WINDOWS + 1
    early = Line("masked", 0, 0, "d0", window, Masked(window=window, payload=Payload.of(b"", b"x")), b"")
    with pytest.raises(InputRefused, match=f"an input of window {window} while window 0 is due"):
        reader.feed(early.incoming())


@pytest.mark.slow
@pytest.mark.parametrize("place", range(0, 66, 5))
def test_an_aggregator_that_loses_its_state_in_a_window_comes_to_the_same_sums(place: int) -> None:
    def sums(world: World) -> list[bytes]:
        return [record.sum_sha256 for record in world.windows()]

    reference = World(5)
    reference.genesis()
    world = Remembered(5)
    world.genesis()
    world.train()
    world.pump(place)
    world.lose_the_aggregator()
    world.pump()
    reference.window()
    for _ in range(2):
        world.window()
        reference.window()
    assert world.refused == []
    assert sums(world) == sums(reference)
    world.derive()
    assert world.gate.window == 3


def test_a_check_in_that_was_refused_for_an_earlier_lease_is_refused_again() -> None:
    world = Remembered(5, drop=lambda sender, message: isinstance(message, Cohort))
    world.genesis()
    world.train()
    said = next(line.message for line in world.log if line.sender == "d0" and isinstance(line.message, Ready))
    assert isinstance(said, Ready)
    for message in (
        said.model_copy(update={"offer": first_number(9) + 1}),
        said.model_copy(update={"offer": first_number(7) + 4}),
        Leave(number=first_number(7) + 1),
    ):
        world.inject("d0", "checkin", message)
    history = world.read_again()
    assert {device: message.offer for device, _, message in history.ready}["d0"] == first_number(9) + 1
