from __future__ import annotations

import hashlib

import pytest

from echelon.errors import CodecError
from echelon.laws.transcript import Clash, Transcript
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.messages.wire import pack
from tests.rounds.controller.test_core import make


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def written() -> Transcript:
    """Genesis, a refusal, commit 1, commit 2, a refusal, the close."""
    transcript = Transcript()
    for message in (
        Genesis.model_construct(),
        Refusal.model_construct(),
        Commit.model_construct(commit=1),
        Commit.model_construct(commit=2),
        Refusal.model_construct(),
        Close.model_construct(),
    ):
        place = transcript.size
        transcript.append(message, digest(f"record {place}"), digest(f"root {place + 1}"))
    return transcript


def delta(base: int, record: int, size: int, root: int | None = None) -> Delta:
    return make(
        0, 0, base=base, base_sha256=digest(f"record {record}"), seen_size=size,
        seen_root=digest(f"root {size if root is None else root}"),
    )[0]  # fmt: skip


def test_commits_are_counted_by_what_was_read() -> None:
    transcript = written()
    assert [transcript.commits(size) for size in range(7)] == [0, 0, 0, 1, 2, 2, 2]
    assert transcript.base(2) == (3, digest("record 3"))
    assert transcript.base(3) is None


@pytest.mark.parametrize(
    ("base", "record", "size", "before"),
    [(0, 0, 1, 0), (0, 0, 2, 1), (1, 2, 3, 3), (1, 2, 4, 0), (2, 3, 6, 4), (0, 0, 6, 6)],
)
def test_what_was_read_contradicts_nothing(base: int, record: int, size: int, before: int) -> None:
    assert written().contradiction(delta(base, record, size), before) is None


@pytest.mark.parametrize(
    ("base", "record", "size", "root", "before", "clash"),
    [
        (0, 0, 1, 1, 2, Clash.BACK),
        (0, 0, 0, 0, 0, Clash.UNSEEN_BASE),
        (0, 0, 7, 7, 0, Clash.BEYOND),
        (5, 9, 9, 9, 0, Clash.BEYOND),
        (0, 0, 2, 1, 0, Clash.ROOT),
        (3, 9, 6, 6, 0, Clash.UNKNOWN_BASE),
        (2, 3, 3, 3, 0, Clash.UNSEEN_BASE),
        (1, 3, 6, 6, 0, Clash.OTHER_BASE),
        (0, 2, 6, 6, 0, Clash.OTHER_BASE),
    ],
)
def test_what_contradicts(base: int, record: int, size: int, root: int, before: int, clash: Clash) -> None:
    found = written().contradiction(delta(base, record, size, root), before)
    assert found is not None
    assert found.clash is clash
    assert found.place is None or found.place < 6


def test_a_commit_that_comes_twice_stays_the_first() -> None:
    transcript = written()
    transcript.append(Commit.model_construct(commit=1), digest("another"), digest("root 7"))
    assert transcript.base(1) == (2, digest("record 2"))


def test_it_is_stored_canonically() -> None:
    for transcript in (Transcript(), written()):
        data = transcript.encode()
        again = Transcript.decode(data)
        assert again.encode() == data
        assert (again.size, again.commits(4), again.base(1)) == (
            transcript.size, transcript.commits(4), transcript.base(1),
        )  # fmt: skip
        for wrong in (b"", data[1:], data[:-1], data + b"\x00"):
            with pytest.raises(CodecError):
                Transcript.decode(wrong)


@pytest.mark.parametrize(
    "fields",
    [
        [b"", [[1, 0, b""], [[], 0, b""]], []],
        [b"", [[1, 0, "text"]], []],
        ["text", [], []],
        [b"", [], ["0"]],
        [b"", [[1, 0]], []],
        [b"", [], [], []],
        7,
    ],
)
def test_a_stored_transcript_with_values_of_other_types_is_refused(fields: object) -> None:
    with pytest.raises(CodecError, match="cannot be read"):
        Transcript.decode(Transcript().encode()[:22] + pack(fields))
