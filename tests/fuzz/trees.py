"""Plain trees with one strange thing in them: another type, another size, a key that is missing, twice or new."""

from __future__ import annotations

import copy
from collections.abc import Callable
from random import Random
from typing import Any

DEEP = "\u2603 nested deeply here"
"""Stands for a nesting that no encoder would write; whoever encodes the tree puts it in."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    255,
    256,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 63) - 1,
    -(1 << 63),
    (1 << 64) - 1,
    1.5,
    -0.0,
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    "x" * 2000,
    "\ud800",
    "\0",
    "../../x",
    "/etc/passwd",
    "é\u2028",
    "NaN",
    "9" * 5000,
    b"",
    b"\x00",
    b"\xff" * 16,
    b"\x00" * 31,
    b"\x00" * 32,
    b"\x01" * 33,
    b"\x00" * 64,
    b"\xff" * 5000,
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    [None] * 5000,
    DEEP,
    [DEEP],
    {"": DEEP},
    1 << 70,
    -(1 << 70),
    10**400,
)


def strange(random: Random, tree: Any, other: Callable[[], Any]) -> Any:
    """The tree after one to three changes; the tree itself may be changed."""
    holder = [tree]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        _change(random, holder, other)
    return holder[0]


def _change(random: Random, holder: list[Any], other: Callable[[], Any]) -> None:
    place, key = _place(random, holder)
    action = random.randrange(10)
    value = place[key]
    if action <= 3:
        place[key] = copy.deepcopy(random.choice(VALUES))
    elif action == 4:
        place[key] = other()
    elif action == 5 and isinstance(place, dict):
        del place[key]
    elif action == 6:
        place[key] = [value] if random.random() < 0.5 else {"a": value}
    elif action == 7 and isinstance(value, dict):
        value[random.choice(("", "surprise", "\ud800", 7, "a" * 300))] = copy.deepcopy(random.choice(VALUES))
    elif action == 8 and isinstance(value, list) and value:
        value.append(copy.deepcopy(random.choice(value)))
    elif isinstance(value, int) and not isinstance(value, bool):
        place[key] = value + random.choice((-1, 1, 1 << 16, -(1 << 33), 1 << 62))
    elif isinstance(value, bytes | str):
        place[key] = _near(random, value)
    else:
        place[key] = copy.deepcopy(random.choice(VALUES))


def _near(random: Random, value: Any) -> Any:
    at = random.randrange(len(value) + 1)
    extra = b"\xff" if isinstance(value, bytes) else random.choice(("x", "\ud800", "\0", "é"))
    return random.choice((value[:at], value[at:], value[:at] + extra + value[at:], value + value))


def _place(random: Random, holder: list[Any]) -> tuple[Any, Any]:
    """A container and the key of something in it, at any depth."""
    place: Any = holder
    key: Any = 0
    while True:
        inner = place[key]
        size = len(inner) if isinstance(inner, dict | list) else 0
        if not size or random.random() < 0.2:
            return place, key
        place = inner
        key = random.choice(list(inner)) if isinstance(inner, dict) else random.randrange(size)
