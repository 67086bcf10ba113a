"""What a check-in must say: each sentence of a refusal, and the offers at the ends of what is allowed."""

from __future__ import annotations

import pytest

from echelon.errors import ProtocolError
from echelon.messages.boundary import Ready
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.offers import check_base, check_work, shards_fit

ME = DeviceId("d0")
PUBLISHED = {4: b"\x04" * 32, 5: b"\x05" * 32}


def offer(
    *,
    n: int = 2,
    base: int = 5,
    digest: bytes = b"\x05" * 32,
    shards: tuple[int, ...] = (),
    edge: str = "",
    jobs: tuple[int, ...] = (),
) -> Ready:
    return Ready(offer=1, base_version=base, base_sha256=digest, n=n, shards=shards, edge=edge, jobs=jobs)


@pytest.mark.parametrize(
    ("shards", "dealt", "fits"),
    [
        ((), None, True),
        ((0,), None, False),
        ((), 3, False),
        ((0,), 3, True),
        ((1, 2), 3, True),
        ((1, 3), 3, False),
        ((0,), 0, False),
    ],
)
def test_offers_name_shards_where_data_is_dealt_and_nowhere_else(
    shards: tuple[int, ...], dealt: int | None, fits: bool
) -> None:
    assert shards_fit(shards, dealt) is fits


def test_a_base_that_was_published_is_taken() -> None:
    check_base(ME, offer(), 5, PUBLISHED)
    check_base(ME, offer(base=4, digest=b"\x04" * 32), 5, PUBLISHED)


def test_a_base_that_is_no_longer_known_is_taken_and_later_rejected_by_its_age() -> None:
    check_base(ME, offer(base=1, digest=b"\xee" * 32), 5, PUBLISHED)


def test_a_base_that_is_not_reached_is_refused() -> None:
    with pytest.raises(ProtocolError, match="d0 trained from version 6, the newest is 5"):
        check_base(ME, offer(base=6), 5, PUBLISHED)


def test_another_digest_of_a_published_base_is_refused() -> None:
    with pytest.raises(ProtocolError, match="d0 names another digest of version 4"):
        check_base(ME, offer(base=4), 5, PUBLISHED)


@pytest.mark.parametrize(
    ("said", "dealt", "edges"),
    [
        (offer(n=1), None, ()),
        (offer(n=16), None, ()),
        (offer(shards=(0, 3)), 4, ()),
        (offer(edge="near", jobs=(1, 2)), None, ("far", "near")),
        (offer(edge="near", jobs=(1,), shards=(2,)), 4, ("near",)),
    ],
)
def test_work_that_can_be_is_taken(said: Ready, dealt: int | None, edges: tuple[str, ...]) -> None:
    check_work(ME, said, n_max=16, dealt=dealt, edges=edges)


@pytest.mark.parametrize(
    ("said", "dealt", "edges", "message"),
    [
        (offer(n=0), None, (), "d0 offers n = 0, outside 1..16"),
        (offer(n=17), None, (), "d0 offers n = 17, outside 1..16"),
        (offer(shards=(1,)), None, (), r"the shards \[1\], and the boundary's data is dealt into none"),
        (offer(shards=(4,)), 4, (), r"the shards \[4\], and the boundary's data is dealt into 4"),
        (offer(), 4, (), r"the shards \[\], and"),
        (offer(edge="near", jobs=(1,)), None, (), "1 jobs with edge near; edges of this boundary: none"),
        (offer(edge="near", jobs=(1,)), None, ("far",), "edges of this boundary: far"),
        (offer(edge="near"), None, ("near",), "0 jobs with edge near"),
        (offer(jobs=(1,)), None, ("near",), "1 jobs with edge none"),
    ],
)
def test_work_that_cannot_be_is_refused(
    said: Ready, dealt: int | None, edges: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        check_work(ME, said, n_max=16, dealt=dealt, edges=edges)
