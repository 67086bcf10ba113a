"""What is refused again and again is counted, and said at each power of ten."""

from __future__ import annotations

from echelon.actors.repeats import MAX_KEYS, Repeats


def test_the_first_the_tenth_and_the_hundredth_are_said() -> None:
    repeats = Repeats()
    said = [(number, more) for number in range(1, 1001) if (more := repeats.again("a")) is not None]
    assert [number for number, _ in said] == [1, 10, 100, 1000]
    assert said[0][1] == ""
    assert said[1][1] == " (10 times by now; others are not listed)"
    assert repeats.again("b") == "", "another kind is another count"


def test_so_many_kinds_as_one_likes_cost_little() -> None:
    repeats = Repeats()
    for kind in range(3 * MAX_KEYS):
        assert repeats.again(kind) == ""
    assert len(repeats._counts) <= MAX_KEYS
