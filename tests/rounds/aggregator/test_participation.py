"""Who may be in a cohort, before one is made: what is taken in, what is refused, and what a cohort waits for."""

from __future__ import annotations

import pytest

from echelon.errors import ProtocolError
from echelon.messages.boundary import Base, Cohort, Derived, Ready, WindowOpen
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.aggregator.participation import Participation
from tests.worlds.boundary_world import manifest_for, names, roster_of

DEVICES = names(4)
DIGEST = b"\x03" * 32
BASES = (Base(version=0, sha256=DIGEST),)
OPENED = WindowOpen(window=0, version=0, commit=0)


def participation(*, cohort: int = 4, derived: bool = True) -> Participation:
    roster = roster_of(DEVICES)
    made = Participation(
        manifest_for(), AggregatorOptions(cohort=cohort, deadline=60.0, round_timeout=10.0), roster
    )
    if derived:
        made.gate_derived(Derived(version=0, commit=0, sha256=DIGEST, window=0), {0: DIGEST})
    return made


def arrive(made: Participation, device: DeviceId, offset: int) -> None:
    message = Ready(offer=offset + 1, base_version=0, base_sha256=DIGEST, n=1)
    made.check_in(device, message, offset, version=0, digests={0: DIGEST})


def chosen(made: Participation) -> list[str] | None:
    effects, cohort = made.cohort(OPENED, BASES)
    assert effects == []
    return None if cohort is None else [member.device for member in cohort.members]


def test_a_cohort_is_made_when_as_many_are_ready_as_are_waited_for() -> None:
    made = participation()
    for offset, device in enumerate(DEVICES[:3]):
        arrive(made, device, offset)
    assert chosen(made) is None
    arrive(made, DEVICES[3], 7)
    assert chosen(made) == list(DEVICES)
    assert made.checked_in == 8


def test_after_the_deadline_the_floor_is_enough_and_less_is_not() -> None:
    made = participation()
    made.overdue = True
    floor = manifest_for().secure.floor
    assert 1 < floor < len(DEVICES)
    for offset, device in enumerate(DEVICES[: floor - 1]):
        arrive(made, device, offset)
    assert chosen(made) is None
    arrive(made, DEVICES[floor - 1], floor)
    assert chosen(made) == list(DEVICES[:floor])


def test_no_cohort_is_made_on_a_version_that_the_gate_did_not_derive() -> None:
    made = participation(derived=False)
    for offset, device in enumerate(DEVICES):
        arrive(made, device, offset)
    assert chosen(made) is None
    made.gate_derived(Derived(version=0, commit=0, sha256=DIGEST, window=0), {0: DIGEST})
    assert chosen(made) == list(DEVICES)


def test_a_version_that_the_gate_derived_otherwise_is_refused_and_changes_nothing() -> None:
    made = participation(derived=False)
    with pytest.raises(ProtocolError, match="another adapter of version 0 than this aggregator published"):
        made.gate_derived(Derived(version=0, commit=0, sha256=b"\x04" * 32, window=0), {0: DIGEST})
    assert made.derived == (-1, b"")


def test_an_older_version_that_is_said_again_takes_nothing_back() -> None:
    made = participation()
    made.gate_derived(Derived(version=4, commit=1, sha256=b"\x07" * 32, window=3), {})
    made.gate_derived(Derived(version=0, commit=0, sha256=DIGEST, window=0), {0: DIGEST})
    assert made.derived == (4, b"\x07" * 32)


def test_who_is_no_device_cannot_check_in_and_is_not_counted_as_read() -> None:
    made = participation()
    with pytest.raises(ProtocolError, match="stranger is no device of"):
        arrive(made, DeviceId("stranger"), 5)
    assert made.checked_in == 0
    assert made.attendance.ready == {}


def test_what_the_topics_say_is_taken_over_as_far_as_it_can_still_be_used() -> None:
    made = participation()
    usable = Ready(offer=1, base_version=0, base_sha256=DIGEST, n=1)
    ahead = Ready(offer=1, base_version=3, base_sha256=DIGEST, n=1)
    dealt = Ready(offer=1, base_version=0, base_sha256=DIGEST, n=1, shards=(0,))
    made.take_over(
        [(DEVICES[3], 2)],
        [(DEVICES[0], 4, usable), (DEVICES[1], 5, ahead), (DEVICES[2], 6, dealt)],
        version=0,
    )
    assert set(made.attendance.ready) == {DEVICES[0]}
    assert made.checked_in == 5
    assert made.attendance.served == {DEVICES[3]: 2}


def test_a_boundary_without_edges_knows_none() -> None:
    made = participation()
    assert made.edges is None
    assert not made.heard("edge", 3)
    assert made.checked_in == 4
    assert not made.lost


def test_the_decision_says_how_far_check_ins_were_read() -> None:
    made = participation()
    for offset, device in enumerate(DEVICES):
        arrive(made, device, 10 + offset)
    _, cohort = made.cohort(OPENED, BASES)
    assert isinstance(cohort, Cohort)
    assert (cohort.inputs, cohort.bases, cohort.window) == (14, BASES, 0)
