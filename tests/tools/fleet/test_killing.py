"""Processes that die on the dot: which record a point means, who dies, and how much of a batch was sent before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from echelon.audit.records import manifest_record
from echelon.bus.base import Outgoing
from echelon.bus.chunks import Transfer, TransferId, to_chunks
from echelon.errors import ConfigError
from echelon.messages.boundary import Leave
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Close, CloseReason, Payload
from echelon.messages.split import SplitFrame
from tools.fleet.killing import Killer, Kills, Moment, Point, described

SIGNER = Signer(bytes(range(32)))
RUN = bytes(16)


class Killed(Exception):
    """In place of SIGKILL."""


def die() -> None:
    raise Killed


def leaving(window: int) -> Outgoing:
    sealed = Envelope.seal(SIGNER, Leave(number=1), run=RUN, topic="checkin", window=window, sender="a-0")
    return Outgoing("checkin", sealed.encode(), b"a-0")


def closing(index: int) -> Outgoing:
    digest = bytes(32)
    close = Close(
        run=RUN, index=index, commits=3, reason=CloseReason.COMMITS, heads=(), adapter_sha256=digest, prefix=digest
    )  # fmt: skip
    key, headers, value = manifest_record(SIGNER, close, RUN)
    return Outgoing("global", value, key, headers)


def frame(number: int) -> Outgoing:
    payload = Payload(transfer=bytes(16), length=7, sha256=bytes(32))
    message = SplitFrame(session=bytes(16), number=number, payload=payload)
    sealed = Envelope.seal(SIGNER, message, run=RUN, topic="split.up", window=0, sender="a-0")
    return Outgoing("split.up", sealed.encode(), b"a-0")


def chunk() -> Outgoing:
    import hashlib

    data = b"payload"
    transfer = Transfer(TransferId(bytes(16)), len(data), hashlib.sha256(data).digest())
    return next(iter(to_chunks(data, transfer, topic="masked", key=b"a-0")))


class Sent:
    """What a broker got, call by call."""

    def __init__(self) -> None:
        self.calls: list[list[Outgoing]] = []

    async def __call__(self, records: Sequence[Outgoing]) -> list[int]:
        self.calls.append(list(records))
        return list(range(len(records)))


def killer(folder: Path, *points: Point, name: str = "a.device.0") -> Killer:
    return Killer(Kills(folder, points), name, die)


def test_records_are_told_apart_by_topic_kind_and_number() -> None:
    assert described(leaving(4)) == described(leaving(4))
    said = described(leaving(4))
    assert (said.topic, said.kind, said.number) == ("checkin", "leave", 4)
    said = described(closing(7))
    assert (said.topic, said.kind) == ("global", "close")
    # Mirrored inward, it is the same record with one more header.
    mirrored = closing(7)
    mirrored = Outgoing(
        "global", mirrored.value, mirrored.key, (*mirrored.headers, ("source-offset", bytes(8)))
    )
    assert described(mirrored) == said
    assert described(chunk()).kind == "chunk"
    # A sealed frame counts in its session, whatever the window.
    said = described(frame(3))
    assert (said.topic, said.kind, said.number) == ("split.up", "split.frame", 3)
    assert described(Outgoing("control", b"garbage")).kind == "other"


@pytest.mark.parametrize(
    ("moment", "sent"), [(Moment.UNSENT, []), (Moment.HALF, [[0]]), (Moment.SENT, [[0, 1]])]
)
def test_how_much_of_a_batch_is_sent_before_the_end(
    tmp_path: Path, moment: Moment, sent: list[list[int]]
) -> None:
    batch = [chunk(), leaving(2), leaving(3)]
    broker = Sent()
    mine = killer(tmp_path, Point("a.device", moment, "leave", 2))
    with pytest.raises(Killed):
        asyncio.run(mine.around_publish(batch, broker))
    assert broker.calls == [[batch[place] for place in call] for call in sent]
    # Started again, it gets past the point.
    again = Killer(Kills(tmp_path), "a.device.0", die)
    asyncio.run(again.around_publish(batch, broker))
    assert broker.calls[-1] == batch


def test_storing_ends_before_or_after_the_step(tmp_path: Path) -> None:
    stored: list[str] = []
    said = [described(leaving(5))]
    before = killer(tmp_path / "before", Point("a.device", Moment.UNSTORED, "leave", 5))
    with pytest.raises(Killed):
        before.around_store(said, lambda: stored.append("before"))
    assert stored == []
    after = killer(tmp_path / "after", Point("a.device", Moment.STORED, "leave", 5))
    with pytest.raises(Killed):
        after.around_store(said, lambda: stored.append("after"))
    assert stored == ["after"]


@pytest.mark.parametrize(
    "point",
    [
        Point("a.device", Moment.SENT, "leave", 3),  # a later window
        Point("a.device", Moment.SENT, "join", 0),  # another message
        Point("a.dev", Moment.SENT, "leave", 0),  # another service, though its name begins so
        Point("b.device", Moment.SENT, "leave", 0),
        Point("a.device", Moment.SENT, "leave", 0, "control"),  # another topic
    ],
)
def test_who_is_not_meant_lives_on(tmp_path: Path, point: Point) -> None:
    broker = Sent()
    asyncio.run(killer(tmp_path, point).around_publish([leaving(2)], broker))
    assert len(broker.calls) == 1
    assert Kills(tmp_path).missed() == [point]


def test_of_several_processes_one_dies(tmp_path: Path) -> None:
    point = Point("a.device", Moment.UNSENT, "leave", 0)
    first, second = killer(tmp_path, point), killer(tmp_path, point, name="a.device.1")
    broker = Sent()
    with pytest.raises(Killed):
        asyncio.run(first.around_publish([leaving(0)], broker))
    asyncio.run(second.around_publish([leaving(0)], broker))
    assert len(broker.calls) == 1
    assert Kills(tmp_path).reached() == [point]


def test_a_folder_without_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no points"):
        Kills(tmp_path)
