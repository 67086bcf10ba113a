"""Who has which slot: the broker's order decides, everybody derives it alike, and clocks only say who may try."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import LimitExceeded
from echelon.laws.leases import MAX_EPOCH, NONE, SlotLease, SlotLeases, SlotSearch, epoch_of, first_number
from echelon.messages.leases import SlotClaim, SlotFree, SlotHold

ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))


def claim(holder: bytes, after: int = NONE) -> SlotClaim:
    return SlotClaim(holder=holder, after=after, seconds=20)


def hold(holder: bytes, epoch: int) -> SlotHold:
    return SlotHold(holder=holder, epoch=epoch, seconds=20)


def read(*said: SlotClaim | SlotHold | SlotFree, start: int = 0) -> SlotLeases:
    leases = SlotLeases()
    for offset, message in enumerate(said, start):
        leases.take("a-0", offset, message)
    return leases


def holder(leases: SlotLeases) -> tuple[bytes, int]:
    lease = leases.of("a-0")
    assert lease is not None
    return lease.holder, lease.epoch


def test_of_two_claims_at_once_the_first_is_granted() -> None:
    assert holder(read(claim(ONE), claim(TWO))) == (ONE, 1)


def test_a_sign_of_life_that_came_first_refuses_a_claim() -> None:
    late = claim(TWO, after=0)
    assert holder(read(claim(ONE), hold(ONE, 1), late)) == (ONE, 1)
    assert holder(read(claim(ONE), late)) == (TWO, 2)


def test_what_an_earlier_holder_says_counts_no_more() -> None:
    taken_over = [claim(ONE), claim(TWO, after=0)]
    leases = read(*taken_over, hold(ONE, 1), SlotFree(epoch=1))
    assert leases.of("a-0") == SlotLease(2, TWO, 1, 20)
    assert not leases.take("a-0", 4, hold(ONE, 1))


def test_a_slot_that_was_given_back_is_free_and_its_next_lease_has_a_higher_epoch() -> None:
    leases = read(claim(ONE), SlotFree(epoch=1))
    found = leases.of("a-0")
    assert found is not None
    assert found.free
    assert leases.take("a-0", 2, claim(TWO, after=1))
    assert holder(leases) == (TWO, 3)


def test_slots_have_nothing_to_do_with_each_other() -> None:
    leases = SlotLeases()
    assert leases.take("a-0", 0, claim(ONE))
    assert leases.take("a-1", 1, claim(TWO))
    assert (leases.of("a-0"), leases.of("a-1")) == (SlotLease(1, ONE, 0, 20), SlotLease(2, TWO, 1, 20))


def test_a_claim_cannot_name_what_comes_after_it_nor_a_holder_a_later_lease() -> None:
    assert read(claim(ONE, after=7)).of("a-0") is None
    assert read(hold(ONE, 9)).of("a-0") is None


def test_where_the_claim_is_not_kept_any_more_the_holder_s_signs_of_life_say_who_it_is() -> None:
    assert holder(read(hold(ONE, 5), start=100)) == (ONE, 5)
    # Refused in its time, by a record that is gone; then the holder speaks.
    doubtful = claim(TWO, after=98)
    assert holder(read(doubtful, start=99)) == (TWO, 100)
    assert holder(read(doubtful, hold(ONE, 5), start=99)) == (ONE, 5)
    # Granted in its time: its own holder speaks, and an earlier one is not heard any more.
    assert holder(read(doubtful, hold(TWO, 100), hold(ONE, 5), start=99)) == (TWO, 100)


def test_after_a_gap_nothing_is_known() -> None:
    leases = read(claim(ONE))
    leases.forget()
    assert leases.of("a-0") is None
    assert leases.take("a-0", 900, hold(TWO, 800))


Said = SlotClaim | SlotHold | SlotFree


class Replica:
    """Reads the log up to some place, and acts as the shell does: claims what it may, and holds what it was granted."""

    def __init__(self, name: bytes) -> None:
        self.name, self.leases, self.position, self.epoch = name, SlotLeases(), 0, 0

    def read_on(self, log: list[Said], count: int) -> None:
        for offset in range(self.position, min(len(log), self.position + count)):
            self.leases.take("a-0", offset, log[offset])
            self.position = offset + 1
        lease = self.leases.of("a-0")
        mine = lease is not None and lease.holder == self.name and not lease.free
        self.epoch = lease.epoch if mine and lease is not None else 0

    def claim(self) -> Said:
        lease = self.leases.of("a-0")
        return claim(self.name, NONE if lease is None else lease.newest)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["read", "claim", "hold", "free"]), st.integers(1, 9))
    )
)
def test_whoever_reads_to_the_end_finds_one_holder_whatever_the_order(
    steps: list[tuple[int, str, int]],
) -> None:
    """Replicas that are behind, that claim what others have, and that hold on to what they have lost."""
    log: list[Said] = []
    replicas = [Replica(name) for name in (ONE, TWO, THREE)]
    for who, what, count in steps:
        replica = replicas[who]
        if what == "read":
            replica.read_on(log, count)
        elif what == "claim":
            log.append(replica.claim())
        elif replica.epoch:
            log.append(hold(replica.name, replica.epoch) if what == "hold" else SlotFree(epoch=replica.epoch))
    epochs = []
    for end in range(len(log) + 1):
        lease = read(*log[:end]).of("a-0")
        epochs.append(0 if lease is None else lease.epoch)
    assert epochs == sorted(epochs)  # no earlier lease ever comes back
    for replica in replicas:
        replica.read_on(log, len(log))
    assert sum(replica.epoch > 0 for replica in replicas) <= 1
    assert len({replica.leases.of("a-0") for replica in replicas}) == 1


# ---- who may try ------------------------------------------------------------------------------------


def test_a_free_slot_may_be_tried_at_once_and_a_held_one_when_its_holder_was_silent_for_long_enough() -> None:
    leases = read(claim(ONE))
    search = SlotSearch(["a-0", "a-1"], {}, now=0.0)
    assert search.candidates(leases, 19.9) == ["a-1"]
    assert search.candidates(leases, 20.0) == ["a-0", "a-1"]
    search.alive("a-0", 15.0)
    assert search.candidates(leases, 34.9) == ["a-1"]
    assert search.candidates(leases, 35.0) == ["a-0", "a-1"]


def test_no_time_counts_in_which_the_broker_was_away() -> None:
    leases = read(claim(ONE))
    search = SlotSearch(["a-0"], {}, now=0.0)
    search.lost_contact(19.0)
    assert search.candidates(leases, 38.9) == []
    assert search.candidates(leases, 39.0) == ["a-0"]


def test_a_lease_of_this_host_s_own_is_not_waited_for() -> None:
    leases = read(claim(ONE))
    assert SlotSearch(["a-0"], {"a-0": ONE}, now=0.0).candidates(leases, 0.0) == ["a-0"]
    assert SlotSearch(["a-0"], {"a-0": TWO}, now=0.0).candidates(leases, 0.0) == []


# ---- numbers ----------------------------------------------------------------------------------------


@given(st.integers(0, MAX_EPOCH - 1), st.integers(1, (1 << 24) - 1))
def test_numbers_of_a_later_lease_are_higher_and_say_of_which_lease_they_are(epoch: int, count: int) -> None:
    number = first_number(epoch) + count
    assert epoch_of(number) == epoch
    assert number < first_number(epoch + 1) < 1 << 63


def test_without_leases_numbers_are_as_they_were() -> None:
    assert first_number(0) == 0
    with pytest.raises(LimitExceeded, match="make the topic `leases` anew"):
        first_number(MAX_EPOCH + 1)
