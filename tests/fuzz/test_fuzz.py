"""Damaged inputs through every reader: nothing but its declared errors, in bounded time and memory.

The short form gives some twenty thousand inputs in all, the nightly form a million. An input is known by its reader,
block and number, so what a run finds can be found again.
"""

from __future__ import annotations

import tracemalloc

import pytest

from tests.fuzz.readers import Reader, readers

SHORT = 400
"""Inputs of a reader with a share of one in the short form."""
TOTAL = 1_000_000
"""Inputs of all readers together in the nightly form."""
BLOCK = 2_000
"""Inputs that are drawn from one seed."""
MEMORY = 64 << 20
"""Bytes that one hostile input may cost at most, whatever length it announces."""
SHOWN = 400

HOSTILE = (
    b"",
    b"\x00",
    b"\xff" * 64,
    b"\x91" * 100_000,
    b"\x81\xa0" * 50_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"{a: " * 100_000,
    b"- " * 100_000,
    b"9" * 100_000,
    b"0x" + b"f" * 100_000,
    b"\xed\xa0\x80" * 1000,
    b'"\\ud800"',
    b"\xff\xff\xff\xff" * 4,
    b"\x00" * 65_536,
    b"a: &a [x]\n"
    + b"".join(
        b"%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n" % (n + 1, n + 1, *[n] * 9)
        for n in range(97, 117)
    ),
    b"a: &a {x: 1}\n"
    + b"".join(
        b"%c: &%c {<<: [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]}\n" % (n + 1, n + 1, *[n] * 9)
        for n in range(97, 117)
    ),
    b"&a [*a]",
    b"&a {a: *a}",
    b"!!python/object/apply:os.system ['true']",
    b"\xf8\xff\xff\xff\xff\xff\xff\x7f{}",
    b"\n" * 100_000,
)
"""Inputs that have brought parsers down: nesting, lengths that are not there, aliases that multiply."""

ALL = pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)


def tried(reader: Reader, count: int, block: int = 0) -> int:
    """Read so many inputs of a block; returns how many were taken."""
    taken = 0
    for number, data in enumerate(reader.inputs(count, block)):
        try:
            reader.read(data)
        except reader.errors:
            continue
        except Exception as error:
            error.add_note(
                f"{reader.name}, block {block}, input {number}, {len(data)} bytes: {data[:SHOWN]!r}"
            )
            raise
        taken += 1
    return taken


@pytest.mark.slow
@ALL
def test_what_the_real_encoders_write_is_taken(reader: Reader) -> None:
    taken = 0
    for data in reader.seeds():
        try:
            reader.read(data)
        except reader.errors:
            continue  # made from a message's fields alone, which rules between them may refuse
        taken += 1
    assert taken, "no input of this reader is valid: what is made from it tests its first check alone"


@pytest.mark.slow
@ALL
def test_damaged_inputs_end_in_declared_errors(reader: Reader) -> None:
    count = max(20, int(SHORT * reader.share))
    assert tried(reader, count) < count or reader.reports, (
        "not one input was refused: the damage does not reach this reader"
    )


@pytest.mark.slow
@ALL
def test_a_hostile_input_costs_bounded_memory(reader: Reader) -> None:
    reader.seeds()  # made before anything is measured
    for data in HOSTILE:
        tracemalloc.start()
        try:
            reader.read(data)
        except reader.errors:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MEMORY, data[:40]


@pytest.mark.parametrize("reader", [r for r in readers() if r.limit], ids=lambda reader: reader.name)
def test_more_bytes_than_the_limit_are_refused_unread(reader: Reader) -> None:
    assert reader.limit is not None
    for filler in (b"\x00", b" ", b"\xc0"):
        with pytest.raises(reader.errors):
            reader.read(filler * (reader.limit + 1))


def test_the_same_inputs_are_drawn_every_time() -> None:
    for reader in readers()[::9]:
        first, again = list(reader.inputs(30)), list(reader.inputs(30))
        assert first == again
        assert first != list(reader.inputs(30, block=1))


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@ALL
def test_a_million_inputs_end_in_declared_errors(reader: Reader) -> None:
    count = -(-int(TOTAL * reader.share) // int(sum(one.share for one in readers())))
    for block in range(-(-count // BLOCK)):
        tried(reader, min(BLOCK, count - block * BLOCK), 1 + block)
