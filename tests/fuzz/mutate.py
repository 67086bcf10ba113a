"""Inputs that are almost right: bytes, and trees of msgpack, JSON and YAML, changed in one place or a few.

Everything is drawn from one `Random`, so an input is known by its reader and its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgpack

from tests.fuzz.trees import DEEP, strange

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]

_BLOCKS = (
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\xc0\x80",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\x00\x00\x00\x01",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"\x00\x00\xc0\x7f",
    b"\x91" * 40,
    b"\x81" * 40,
    b"\n\n",
    b"\r",
    b"\x00",
)
_TEXTS = (
    b"\\ud800",
    b"\\u0000",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"NaN",
    b"Infinity",
    b"1e999",
    b"9" * 5000,
    b"-0",
    b"null",
    b'"\\ud83d"',
    b",",
    b"{}",
    b"\xe2\x80\xa8",
)
_YAML = (
    b"&a [*a]",
    b"!!python/object/apply:os.system [id]",
    b"!!bool x",
    b"!!int ''",
    b"!!float ''",
    b"!!binary ====",
    b"!!set {a}",
    b"2026-99-99",
    b"<<: [{a: 1}, {b: 2}]",
    b"? [a]\n: b",
    b"- " * 200,
    b"*unknown",
    b"'\\0'",
    b'"\\ud800"',
    b'"\\0"',
    b".inf",
    b".nan",
    b"0x" + b"f" * 200,
    b"1" * 5000,
    b"1:" * 500 + b"1",
    b"%YAML 9.9\n---",
    b"---\na: 1\n---\nb: 2",
    b"\t",
    b"{" * 2000,
    b"[" * 2000,
    b"!<tag:yaml.org,2002:timestamp> x",
    b"|\n",
    b"&x {a: &y [1], b: [*y, *y]}",
    b"a: 1\na: 2",
)


def raw(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bits, lengths, pieces: whatever damages bytes."""
    return _damaged(random, data, others, _BLOCKS)


def _damaged(random: Random, data: bytes, others: Sequence[bytes], blocks: Sequence[bytes]) -> bytes:
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(found) + 1)
        end = min(len(found), at + random.choice((1, 2, 4, 8, 32, 256)))
        action = random.randrange(10)
        if action == 0 and at < len(found):
            found[at] ^= 1 << random.randrange(8)
        elif action == 1 and at < len(found):
            found[at] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.randrange(256)))
        elif action == 2:
            del found[at:]
        elif action == 3:
            del found[at:end]
        elif action == 4:
            found[at:at] = found[at:end]
        elif action == 5:
            other = random.choice(others)
            found = found[:at] + other[random.randrange(len(other) + 1) :]
        elif action == 6:
            found[at:at] = random.choice(blocks)
        elif action == 7:
            found[at:end] = random.randbytes(end - at)
        elif action == 8 and at + 4 <= len(found):
            number = random.choice((0, 1, len(data), len(data) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1))
            found[at : at + 4] = number.to_bytes(4, random.choice(("big", "little")))
        else:
            found += random.choice(blocks)
    return bytes(found)


def packed(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A tree of msgpack with another value, key or nesting somewhere; or damaged bytes."""
    if random.random() < 0.4:
        return raw(random, data, others)
    try:
        tree = msgpack.unpackb(data, raw=False, use_list=True, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return raw(random, data, others)
    return _pack(strange(random, tree, lambda: _unpacked(random.choice(others))))


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException):
        return data


def _pack(tree: Any) -> bytes:
    try:
        found = msgpack.packb(tree, use_bin_type=True, unicode_errors="surrogatepass")
    except (
        OverflowError,
        ValueError,
        TypeError,
    ):  # an integer that msgpack has not, or a tree too deep for it
        found = msgpack.packb([repr(type(tree))])
    return bytes(found).replace(msgpack.packb(DEEP), b"\x91" * 2000 + b"\xc0")


def text(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """JSON with another value, key or nesting somewhere; or damaged text."""
    if random.random() < 0.4:
        return _damaged(random, data, others, (*_BLOCKS[:6], *_TEXTS))
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _damaged(random, data, others, _TEXTS)
    return _dumped(strange(random, tree, lambda: None), compact=random.random() < 0.8)


def _dumped(tree: Any, *, compact: bool = True) -> bytes:
    def plain(value: object) -> str:
        return value.hex() if isinstance(value, bytes) else repr(value)

    found = json.dumps(tree, default=plain, separators=(",", ":") if compact else None, skipkeys=True)
    return found.encode().replace(json.dumps(DEEP).encode(), b"[" * 2000 + b"]" * 2000)


def lines(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One JSON value a line: one of them changed, or lines in another order."""
    listed = data.split(b"\n")
    at = random.randrange(len(listed))
    if random.random() < 0.1:
        random.shuffle(listed)
    listed[at] = text(random, listed[at], others)
    return b"\n".join(listed)


def yaml(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A YAML document (seeds are JSON, which is YAML) with another tree, or with what only YAML has."""
    if random.random() < 0.5:
        try:
            return _dumped(strange(random, json.loads(data), lambda: None))
        except (ValueError, RecursionError):
            pass
    if random.random() < 0.5:
        listed = data.split(b",")  # in place of a value
        at = random.randrange(len(listed))
        head, colon, _ = listed[at].partition(b":")
        listed[at] = head + colon + b" " + random.choice(_YAML)
        return b",".join(listed)
    return _damaged(random, data, others, (*_YAML, *_BLOCKS[:6]))
