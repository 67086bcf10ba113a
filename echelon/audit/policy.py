"""An auditor's policy: how many witnesses must have cosigned each log, and whose cosignatures count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echelon.audit.note import parse_cosigner_vkey
from echelon.errors import CodecError, ConfigError
from echelon.messages.wire import Slug
from echelon.validation import sentence

MAX_POLICY_BYTES = 1 << 16
"""Largest policy file: a hundred witnesses need less than a quarter of it."""
MAX_WITNESSES = 256
DEFAULT_LAG = 8

Quorum = Annotated[int, Field(ge=0, le=MAX_WITNESSES)]


class _File(BaseModel):
    """The file's fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    quorum: Quorum
    logs: dict[Annotated[str, Field(min_length=1, max_length=100)], Quorum] = Field(
        default={}, max_length=128
    )
    witnesses: dict[Slug, Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=MAX_WITNESSES
    )
    lag: Annotated[int, Field(ge=0, le=1 << 32)] = DEFAULT_LAG


@dataclass(frozen=True)
class Policy:
    """What an auditor asks of witnesses.

    Attributes:
        quorum: how many must have cosigned each log that `logs` does not name.
        logs: the same for single logs, by topic.
        keys: whose cosignatures count: name of the witness to its key name and key (32 bytes); an empty key name stands
            for the one that the run gives it. None: the witnesses that the run manifest lists.
        lag: manifests at the end of a log that need no cosignatures yet, in a run that is not closed.
    """

    quorum: int
    logs: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, tuple[str, bytes]] | None = None
    lag: int = DEFAULT_LAG

    def needed(self, topic: str) -> int:
        """How many cosignatures the log of a topic needs."""
        return self.logs.get(topic, self.quorum)

    @classmethod
    def of(cls, fields: object, where: str) -> Policy:
        """A policy of the plain values of its file.

        Args:
            fields: what the YAML says.
            where: the file's name, for messages.

        Raises:
            ConfigError: what is wrong, in which field, and what may stand there.
        """
        if not isinstance(fields, dict):
            raise ConfigError(f"policy {where}: is not a map; it needs at least `quorum: NUMBER`")
        try:
            file = _File.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(f"policy {where}:\n" + "\n".join(_lines(error))) from None
        keys = None if file.witnesses is None else _keys(file.witnesses, where)
        most = max([file.quorum, *file.logs.values()])
        if keys is not None and most > len(keys):
            raise ConfigError(
                f"policy {where}: asks for {most} cosignatures and names {len(keys)} witnesses: lower the quorum, or "
                "name more"
            )
        return cls(file.quorum, file.logs, keys, file.lag)


def _lines(error: ValidationError) -> list[str]:
    known = ", ".join(_File.model_fields)
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        at = ".".join(str(part)[:64] for part in problem["loc"]) or "the file"
        what = sentence(problem)
        if problem["type"] == "extra_forbidden":
            what = f"unknown; there are {known}"
        elif problem["type"] == "missing":
            what = "is missing; say how many witnesses must have cosigned"
        lines.append(f"  {at}: {what}")
    return lines


def _keys(witnesses: Mapping[str, str], where: str) -> dict[str, tuple[str, bytes]]:
    keys: dict[str, tuple[str, bytes]] = {}
    for name, text in witnesses.items():
        try:
            if "+" in text:
                keys[name] = parse_cosigner_vkey(text)
                continue
            key = bytes.fromhex(text)
        except CodecError as error:
            raise ConfigError(f"policy {where}: witnesses.{name}: {error}") from None
        except ValueError:
            key = b""
        if len(key) != 32:
            raise ConfigError(
                f"policy {where}: witnesses.{name}: give its Ed25519 key as 64 hex digits or as NAME+KEYID+KEY"
            )
        keys[name] = ("", key)
    if len({key for _, key in keys.values()}) < len(keys):
        raise ConfigError(f"policy {where}: two witnesses have one key, which would count twice")
    return keys
