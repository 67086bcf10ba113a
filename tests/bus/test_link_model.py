"""What a bad link does, drawn from one source."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from echelon.bus.link_model import InOrder, LinkFaults, LinkModel, Outages
from echelon.errors import ConfigError


class Counted(random.Random):
    """A source that counts what is drawn from it."""

    drawn = 0

    def random(self) -> float:
        self.drawn += 1
        return super().random()


def test_nothing_is_drawn_for_what_cannot_happen() -> None:
    source = Counted(1)
    model = LinkModel(LinkFaults(latency=0.5), source)
    assert (model.late(), model.happens(0.0), model.appended(3), source.drawn) == (0.5, False, 3, 0)


def test_a_message_is_late_by_the_latency_and_at_most_the_jitter_more() -> None:
    source = Counted(2)
    model = LinkModel(LinkFaults(latency=0.5, jitter=0.25), source)
    times = [model.late() for _ in range(200)]
    assert 0.5 <= min(times) < 0.52
    assert 0.73 < max(times) <= 0.75
    assert source.drawn == 200
    model.set_latency(2.0)
    assert 2.0 <= model.late() <= 2.25


def test_a_publish_that_is_lost_before_leaves_a_shorter_prefix() -> None:
    always = LinkModel(LinkFaults(lose_before=1.0), random.Random(3))
    assert {always.appended(3) for _ in range(50)} == {0, 1, 2}
    sometimes = LinkModel(LinkFaults(lose_before=0.5), random.Random(4))
    assert {sometimes.appended(2) for _ in range(50)} == {0, 1, 2}


def test_nothing_overtakes_on_one_way() -> None:
    way = InOrder()
    assert [way.arrival(when) for when in (3.0, 1.0, 4.0, 3.5)] == [3.0, 3.0, 4.0, 4.0]


def test_outages_count_from_their_origin_and_end_as_they_say() -> None:
    outages = Outages(((5.0, 6.0), (1.0, 2.0)), 10.0)
    assert [outages.during(when) for when in (10.9, 11.0, 11.9, 12.0)] == [
        None,
        (11.0, 12.0),
        (11.0, 12.0),
        None,
    ]
    assert [outages.next_start(when) for when in (0.0, 11.0, 15.0)] == [11.0, 15.0, None]
    assert outages.broke(10.0, 20.0)
    assert outages.broke(10.9, 11.0)
    assert not outages.broke(11.0, 14.9)


@pytest.mark.parametrize(
    "wrong",
    [{"latency": -1}, {"latency": math.inf}, {"jitter": math.nan}, {"duplicate": 1.5}, {"lose_read": -0.1}],
)
def test_faults_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"link: {next(iter(wrong))} is"):
        LinkFaults(**wrong)
