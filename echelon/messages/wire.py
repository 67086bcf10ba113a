"""The codec: one canonical msgpack encoding, strict types, explicit limits, and an enumerated reason for each refusal.

What is hashed or signed is never decoded and encoded again to be checked: the exact bytes are. Decoding
accepts only bytes that the encoder would have written, so two different byte strings never mean one message.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, NewType, Self

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echelon.errors import CodecError

MAX_CONTROL_BYTES = 64 * 1024
"""Largest encoded body of a message; chunks of a transfer do not go through this codec."""
MAX_MANIFEST_BYTES = 8 * 1024
"""Largest encoded manifest on the exchange plane: O(1) in devices and parameters."""
MAX_HEADS_BYTES = 16 * 1024
"""The same of a manifest that has a log's head for every boundary: only the controller writes those."""
MAX_ITEMS = 4096
"""Most items of one list or map."""
MAX_DEPTH = 6
"""Deepest nesting of lists and maps."""
MAX_STRING = 1024
"""Longest string in bytes."""

DeviceId = NewType("DeviceId", str)
BoundaryName = NewType("BoundaryName", str)

Digest = Annotated[bytes, Field(min_length=32, max_length=32)]
"""A SHA-256 digest, 32 bytes."""
Key32 = Annotated[bytes, Field(min_length=32, max_length=32)]
"""A raw X25519 or Ed25519 public key, 32 bytes."""
Signature = Annotated[bytes, Field(min_length=64, max_length=64)]
"""An Ed25519 signature, 64 bytes."""
Id16 = Annotated[bytes, Field(min_length=16, max_length=16)]
"""A random or derived identifier, 16 bytes."""
U16 = Annotated[int, Field(ge=0, lt=1 << 16)]
U32 = Annotated[int, Field(ge=0, lt=1 << 32)]
U63 = Annotated[int, Field(ge=0, lt=1 << 63)]
I64 = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$")]
"""A name of a device or boundary: lower case letters, digits, dot, dash, underscore; at most 64."""


class Reason(StrEnum):
    """Why a record was refused. The closed list that `deadletter` may carry."""

    OVERSIZED = "oversized"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    DUPLICATE_KEY = "duplicate-key"
    TOO_DEEP = "too-deep"
    TOO_MANY = "too-many-items"
    UNKNOWN_TYPE = "unknown-type"
    UNKNOWN_VERSION = "unknown-version"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    BAD_FIELD = "bad-field"
    WRONG_PLANE = "wrong-plane"
    NOT_CANONICAL = "not-canonical"
    UNKNOWN_SENDER = "unknown-sender"
    WRONG_SENDER = "wrong-sender"
    WRONG_RUN = "wrong-run"
    WRONG_TOPIC = "wrong-topic"
    BAD_SIGNATURE = "bad-signature"
    BAD_TRANSFER = "bad-transfer"
    OUT_OF_ORDER = "out-of-order"
    FORK = "fork"
    PROTOCOL = "protocol"
    BAD_TENSOR = "bad-tensor"
    BAD_FRAME = "bad-frame"
    LOW_TRUST = "low-trust"
    FENCED = "fenced"


class Refused(CodecError):
    """Bytes that are not an allowed message; `reason` is what goes to `deadletter`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class Fields(BaseModel):
    """A frozen, strict group of named fields: a message, or a part of one."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    left_out: ClassVar[frozenset[str]] = frozenset()
    """Fields that are not written while they are empty: they came later, and what has none of them keeps its bytes."""

    def written(self) -> dict[str, Any]:
        """The fields that are written, by name, in order of declaration."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in fields.items() if value or name not in self.left_out}


class Message(Fields):
    """A message body. `kind` and `revision` name it on the wire; a change of fields is a new revision."""

    kind: ClassVar[str]
    revision: ClassVar[int] = 1
    largest: ClassVar[int] = MAX_MANIFEST_BYTES
    """Bytes of the longest encoding that may cross to the exchange."""
    costly: ClassVar[bool] = False
    """Whether taking one computes so much that an actor does it off its event loop."""

    def encode(self) -> bytes:
        """The one canonical encoding of the fields: a msgpack map in order of declaration."""
        return pack(plain(self))

    @classmethod
    def decode(cls, data: bytes, *, limit: int = MAX_CONTROL_BYTES) -> Self:
        """Read a body, and refuse whatever `encode` would not have written.

        Raises:
            Refused: with the enumerated reason.
        """
        fields = unpack(data, limit=limit)
        if not isinstance(fields, dict):
            raise Refused(Reason.MALFORMED, f"{cls.kind} is not a map of fields")
        try:
            message = cls.model_validate(fields)
        except ValidationError as error:
            raise _refusal(cls.kind, error) from None
        if message.encode() != data:
            raise Refused(Reason.NOT_CANONICAL, f"{cls.kind} re-encodes to other bytes")
        return message


def _refusal(kind: str, error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_input=False)[0]
    reason = {"extra_forbidden": Reason.UNKNOWN_FIELD, "missing": Reason.MISSING_FIELD}.get(
        first["type"], Reason.BAD_FIELD
    )
    where = ".".join(str(part)[:64] for part in first["loc"])[:256]
    return Refused(reason, f"{kind}.{where}: {first['msg'][:200]}")


def plain(value: object) -> object:
    """Message fields as the maps, lists, strings, bytes, integers and booleans that msgpack knows."""
    if isinstance(value, Fields):
        return {name: plain(field) for name, field in value.written().items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    raise CodecError(
        f"a field of type {type(value).__name__} cannot stand in a message (floats are not allowed)"
    )


def pack(value: object) -> bytes:
    """Canonical msgpack of plain values."""
    return bytes(msgpack.packb(value, use_bin_type=True))


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Refused(Reason.DUPLICATE_KEY, "a map has one key twice")
    return fields


def unpack(data: bytes, *, limit: int = MAX_CONTROL_BYTES) -> object:
    """Plain values of canonical msgpack; lists come back as tuples.

    Raises:
        Refused: oversized, truncated, nested too deep, duplicate keys, extension types, floats, trailing bytes.
    """
    if len(data) > limit:
        raise Refused(Reason.OVERSIZED, f"{len(data)} bytes, at most {limit} are taken")
    _scan(data)
    try:
        return msgpack.unpackb(
            data, raw=False, use_list=False, strict_map_key=True, object_pairs_hook=_pairs, max_ext_len=0
        )
    except Refused:
        raise
    except (ValueError, msgpack.UnpackException, UnicodeDecodeError) as error:
        raise Refused(Reason.MALFORMED, f"not msgpack: {type(error).__name__}") from None


def _scan(data: bytes) -> None:
    """Walk the tokens without building objects: bounds are checked before memory is spent."""
    position, end, todo = 0, len(data), [1]
    while todo:
        if todo[-1] == 0:
            todo.pop()
            continue
        todo[-1] -= 1
        if position >= end:
            raise Refused(Reason.TRUNCATED, f"ends after {end} bytes in the middle of a value")
        tag = data[position]
        items, skip, width = _token(tag)
        body = position + 1
        if width:
            if body + width > end:
                raise Refused(Reason.TRUNCATED, f"ends after {end} bytes in the middle of a length")
            count = int.from_bytes(data[body : body + width], "big")
            body += width
            if items:
                items *= count
            else:
                skip = count
        if items > MAX_ITEMS * 2:
            raise Refused(Reason.TOO_MANY, f"a list or map of more than {MAX_ITEMS} items at byte {position}")
        if body + skip > end:
            raise Refused(Reason.TRUNCATED, f"a value at byte {position} runs past the end")
        position = body + skip
        if items:
            todo.append(items)
            if len(todo) > MAX_DEPTH + 1:
                raise Refused(Reason.TOO_DEEP, f"nested deeper than {MAX_DEPTH} at byte {position}")
    if position != end:
        raise Refused(Reason.MALFORMED, f"{end - position} bytes follow the message")


_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_NESTED = {0xDC: (1, 2), 0xDD: (1, 4), 0xDE: (2, 2), 0xDF: (2, 4)}


def _token(tag: int) -> tuple[int, int, int]:
    """For a msgpack tag: items that follow (per count, if a count follows), bytes to skip, width of the count."""
    if tag < 0x80 or tag >= 0xE0:
        return 0, 0, 0
    if tag < 0x90:
        return 2 * (tag & 0x0F), 0, 0
    if tag < 0xA0:
        return tag & 0x0F, 0, 0
    if tag < 0xC0:
        return 0, tag & 0x1F, 0
    if tag in _FIXED:
        return 0, _FIXED[tag], 0
    if tag in _SIZED:
        return 0, 0, _SIZED[tag]
    if tag in _NESTED:
        items, width = _NESTED[tag]
        return items, 0, width
    raise Refused(Reason.MALFORMED, f"a type of msgpack that is not allowed here (tag 0x{tag:02x})")


PROTOCOL = 2
"""Of messages, logs and terms. What another protocol wrote is refused in words, and not converted."""


def of_another_protocol(what: str, number: int) -> Refused:
    """The refusal of something that another version of the protocol wrote."""
    return Refused(
        Reason.UNKNOWN_VERSION,
        f"{what} is of protocol {number}; this version reads protocol {PROTOCOL}: use the version that wrote it",
    )


class Registry:
    """The closed set of messages of one plane, by kind and version.

    Args:
        plane: its name.
        messages: the classes.
        former: (kind, version) of messages that an earlier protocol had, and that protocol's number.
    """

    def __init__(
        self,
        plane: str,
        messages: tuple[type[Message], ...],
        former: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.plane = plane
        self._former = dict(former or {})
        self._by_name = {(message.kind, message.revision): message for message in messages}
        self._kinds = {message.kind for message in messages}
        if len(self._by_name) != len(messages):
            raise CodecError(f"two messages of the {plane} plane have one kind and version")

    @property
    def former(self) -> tuple[tuple[str, int], ...]:
        """(kind, version) of messages of an earlier protocol, which `find` refuses in words."""
        return tuple(self._former)

    def __iter__(self) -> Any:
        return iter(self._by_name.values())

    def find(self, kind: str, version: int) -> type[Message]:
        """The message class.

        Raises:
            Refused: unknown type or version.
        """
        message_class = self._by_name.get((kind, version))
        if message_class is not None:
            return message_class
        if (kind, version) in self._former:
            raise of_another_protocol(f"this {kind}", self._former[kind, version])
        if kind in self._kinds:
            raise Refused(
                Reason.UNKNOWN_VERSION,
                f"{kind[:64]} version {version} is not known on the {self.plane} plane",
            )
        raise Refused(Reason.UNKNOWN_TYPE, f"{kind[:64]!r} is not a message of the {self.plane} plane")
