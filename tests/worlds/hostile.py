"""Records that a member of a boundary may write and no honest one does: every message, with its fields changed.

What comes out passes the codec, so an actor's shell would hand it to its core; senders are those whose role may write
the topic. Everything follows from a seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from echelon.errors import CodecError
from echelon.messages.behaviour import Behaviour
from echelon.messages.exchange import Payload
from echelon.messages.wire import Fields, Message
from echelon.rounds.effects import Incoming
from echelon.topics import Plane, Role, load_catalogue

NUMBERS = (0, 1, 2, 3, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1)
FLOATS = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45)


def topics_of(kind: str) -> list[tuple[str, frozenset[Role]]]:
    """Topics on which a message may stand, and who may write it there."""
    plane = load_catalogue().plane(Plane.BOUNDARY)
    return [(topic.name, frozenset(topic.writers)) for topic in plane.topics if kind in topic.messages]


class Hostile:
    """Changes records. `names` are those of devices, edges, and of nobody."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.dice = random.Random(seed)
        self.names = (*names, "stranger", "a" * 64)

    def changed(self, message: Message) -> Message | None:
        """The message with one to three of its fields changed; None if the codec would not take it."""
        fields = list(type(message).model_fields)
        if not fields:
            return message
        update = {}
        for name in self.dice.sample(fields, min(len(fields), self.dice.randint(1, 3))):
            update[name] = self.value(getattr(message, name))
        try:
            made = message.model_copy(update=update)
            return type(message).decode(made.encode())
        except CodecError:
            return None

    def value(self, value: Any) -> Any:
        """Another value of the same type."""
        dice = self.dice
        match value:
            case bool():
                return not value
            case int():
                return dice.choice((*NUMBERS, max(0, value - 1), value + 1, -1))
            case str():
                return type(value)(dice.choice(self.names)) if type(value) is str else value
            case bytes():
                made = dice.choice((bytes(len(value)), b"\xff" * len(value), dice.randbytes(len(value))))
                return dice.choice((made, made, made, made[:-1]))
            case tuple():
                return self.items(value)
            case Fields():
                name = dice.choice(list(type(value).model_fields))
                return value.model_copy(update={name: self.value(getattr(value, name))})
            case _:
                return value

    def items(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        """A tuple with items changed, left out, repeated, or in another order."""
        if not value:
            return value
        at = self.dice.randrange(len(value))
        return self.dice.choice(
            (
                (),
                value[1:],
                value[:-1],
                (*value, value[at]),
                tuple(reversed(value)),
                (*value[:at], self.value(value[at]), *value[at + 1 :]),
                (*value[:at], self.value(value[at]), *value[at + 1 :]),
            )
        )

    def bytes_of(self, payload: bytes) -> bytes:
        """Other bytes of a payload."""
        dice = self.dice
        floats = np.array([dice.choice(FLOATS) for _ in range(max(1, len(payload) // 4))], "<f4").tobytes()
        return dice.choice(
            (
                payload, payload[:-1], payload[:-4], b"", payload + bytes(4), bytes(len(payload)), floats,
                b"\xff\xff\xff\x7f" * (len(payload) // 4), b"\x00\x00\x00\x80" * (len(payload) // 4),
                dice.randbytes(len(payload)),
            )
        )  # fmt: skip

    def record(self, seen: Incoming, senders: Callable[[str], Sequence[str]]) -> Incoming | None:
        """A record made of one that was seen; `senders` are who may write a topic."""
        message = self.changed(seen.message)
        if message is None:
            return None
        payload = seen.payload
        described = getattr(message, "payload", None)
        if payload is not None and isinstance(described, Payload):
            payload = self.bytes_of(payload)
            update: dict[str, Any] = {"payload": Payload.of(payload, b"hostile")}
            if hasattr(message, "sha256") and self.dice.random() < 0.7:
                size = len(seen.payload or b"") // (2 if getattr(seen.message, "anchored", False) else 1)
                update["sha256"] = hashlib.sha256(payload[:size]).digest()
            message = message.model_copy(update=update)
        window = getattr(message, "window", None)
        return Incoming(
            seen.topic,
            seen.offset + self.dice.choice((0, 1, 1000)),
            self.dice.choice(list(senders(seen.topic))),
            seen.window if window is None else window,
            message,
            payload,
        )


def behaviours(seed: int, terms: bytes, count: int) -> Iterator[Behaviour]:
    """Records of behaviour of every shape, and with numbers at the ends of what is allowed."""
    dice = np.random.default_rng(seed)
    for number in range(count):
        dim, rows, classes = (int(dice.choice(sizes)) for sizes in ((1, 3, 3, 64), (1, 24, 24), (2, 8, 8)))
        scale = float(dice.choice([1e-8, 1.0, 1e9]))
        counts = np.zeros((rows, classes), np.uint16)
        counts[np.arange(rows), dice.integers(0, classes, rows)] = 65_535
        yield Behaviour.of(
            number=int(dice.choice([0, number, (1 << 63) - 1])), version=0,
            terms=terms if dice.random() < 0.9 else bytes(32),
            mean=np.full(dim, float(dice.choice([-1e9, 0.0, 1e9]))), covariance=scale * np.eye(dim), counts=counts,
        )  # fmt: skip
