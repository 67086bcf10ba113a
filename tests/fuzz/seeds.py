"""Valid inputs: what real actors write in a short federation; and from their fields, messages that do not occur there.

Nothing here names a message's fields, so a field that is added needs no change.
"""

from __future__ import annotations

import types
from enum import Enum
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, MinLen
from pydantic import BaseModel

from echelon.bus.chunks import is_chunk
from echelon.messages.envelope import Dsse, Envelope
from echelon.messages.wire import Message, Refused, pack
from tests.run.runs import Outcome, federation, run


@cache
def outcome() -> Outcome:
    """A finished federation of two boundaries on the virtual clock."""
    return run(federation(budget={"commits": 2}))


@cache
def envelopes() -> tuple[bytes, ...]:
    """Some records of every boundary topic."""
    return tuple(
        record.value
        for topics in outcome().topics.values()
        for name, records in topics.items()
        if not name.startswith(("global", "delta.", "head.", "witness."))
        for record in _some([r for r in records if not is_chunk(r) and not r.value.startswith(b"{")])
    )


@cache
def dsse() -> tuple[bytes, ...]:
    """Every manifest of the exchange."""
    return tuple(
        record.value
        for name, records in outcome().topics["exchange"].items()
        if name.startswith(("global", "delta."))
        for record in records
        if not is_chunk(record)
    )


@cache
def bodies(kind: type[Message]) -> tuple[bytes, ...]:
    """Encodings of a message: as they occurred, else as its fields say."""
    found = {
        envelope.body
        for envelope in map(Envelope.open, envelopes())
        if (envelope.type, envelope.type_version) == (kind.kind, kind.revision)
    } | {Dsse.decode(value).payload for value in dsse()}
    return (*[body for body in sorted(found) if _reads(kind, body)][:4], pack(example(kind)))


def _reads(kind: type[Message], body: bytes) -> bool:
    """Whether it is one of these: planes share names of kinds."""
    try:
        kind.decode(body)
    except Refused:
        return False
    return True


def _some(records: list[Any]) -> list[Any]:
    step = max(1, len(records) // 12)
    return records[::step]


def example(kind: Any, limits: tuple[Any, ...] = ()) -> Any:
    """A plain value that a field of this type may have; rules between fields it does not know."""
    found = get_origin(kind)
    if found is Annotated:
        inner, *said = get_args(kind)
        return example(inner, (*said, *limits))
    if found in (Union, types.UnionType):
        return next((example(one, limits) for one in get_args(kind) if one is not type(None)), None)
    if found is tuple and ... not in get_args(kind):
        return [example(one) for one in get_args(kind)]
    if found is tuple:
        return [example(get_args(kind)[0])] * max(1, _least(limits, MinLen, "min_length"))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {
            name: example(field.annotation, tuple(field.metadata))
            for name, field in kind.model_fields.items()
        }
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind)).value
    return _scalar(getattr(kind, "__supertype__", kind), limits)


def _scalar(kind: Any, limits: tuple[Any, ...]) -> Any:
    if kind is bytes:
        return b"\x01" * _least(limits, MinLen, "min_length")
    if kind is int:
        return max(_least(limits, Ge, "ge"), _least(limits, Gt, "gt") + 1)
    if kind is bool:
        return True
    return "a" * max(1, _least(limits, MinLen, "min_length"))


def _least(limits: tuple[Any, ...], kind: type, name: str) -> int:
    flat = [one for limit in limits for one in (getattr(limit, "metadata", None) or [limit])]
    return max((int(getattr(limit, name)) for limit in flat if isinstance(limit, kind)), default=0)
