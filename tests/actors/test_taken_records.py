"""What an actor remembers of the records it has taken."""

from __future__ import annotations

import pytest

from echelon.actors import taken_records as module
from echelon.actors.taken_records import TakenRecords
from echelon.bus.base import TopicPartition

A, B = TopicPartition("checkin", 0), TopicPartition("checkin", 1)


def test_a_record_is_taken_once_in_its_partition() -> None:
    taken = TakenRecords()
    assert [taken.again(A, b"x"), taken.again(A, b"x"), taken.again(B, b"x")] == [False, True, False]


def test_what_is_stored_is_asked_for_once() -> None:
    taken = TakenRecords()
    taken.again(A, b"x")
    taken.again(A, b"y")
    taken.again(A, b"x")
    assert taken.unstored() == {A: [b"x", b"y"]}
    assert taken.unstored() == {}
    assert taken.again(A, b"y")


def test_a_restart_knows_what_was_stored_and_what_is_forgotten_is_new() -> None:
    taken = TakenRecords()
    taken.begin_with({A: [b"x"]})
    assert taken.again(A, b"x")
    assert taken.unstored() == {}
    taken.forget()
    assert not taken.again(A, b"x")


def test_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    taken = TakenRecords()
    for signature in (b"1", b"2", b"3"):
        assert not taken.again(A, signature)
    assert taken.unstored() == {A: [b"2", b"3"]}
    assert not taken.again(A, b"1"), "the oldest was forgotten"
    assert taken.again(A, b"3")
