"""Changes of signing keys: what an owner or the operator signs, and what then stands on `global`.

A statement ends one key of an actor and names the next one. Nobody has to believe who carries it: the key that ends
(or, for a key that was lost or stolen, the operator's) signs it, and so does the key that begins. The controller puts
it on `global`, where its place says from when on it holds; `echelon.laws.keys` says who follows it, and how.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, ValidationError

from echelon.messages.envelope import Signer, verify_signature
from echelon.messages.wire import (
    U16,
    U63,
    Digest,
    Fields,
    Id16,
    Key32,
    Message,
    Reason,
    Refused,
    Signature,
    pack,
)

NOBODY = bytes(32)
"""Stands for the next key where an actor gets none."""
NO_SIGNATURE = bytes(64)
KEY_CONTEXT = b"echelon key change v1\x00"
MAX_STATEMENT_BYTES = 4096
"""Largest file of a statement."""


class KeyRole(StrEnum):
    """Whose keys the run manifest names, and so can be changed: those that sign on the exchange."""

    CONTROLLER = "controller"
    GATE = "gate"
    """By its boundary: the key that signs what crosses."""
    WITNESS = "witness"
    """Of a boundary's gate as a witness, or of a witness of its own."""


class KeyStatement(Fields):
    """One change of one actor's key, signed by those who may say so."""

    run: Id16
    role: Annotated[KeyRole, Strict(False)]
    place: U16
    """Of a gate: its boundary's index in the run manifest; of a witness: its own there; of the controller: 0."""
    number: U63
    """Of this change among those of the actor's key, gap-free from 1."""
    former: Key32
    """The key that ends; `NOBODY` where the change before left the actor without one."""
    public: Key32
    """The key that begins; `NOBODY` where the actor gets none."""
    proof: Signature
    """By the key that begins, whose owner so shows that it is his; `NO_SIGNATURE` where none begins."""
    signature: Signature
    """By the key that ends; where it is revoked, by the operator."""

    @property
    def actor(self) -> tuple[KeyRole, int]:
        """Whose key it is."""
        return self.role, self.place

    def signed_bytes(self, kind: str) -> bytes:
        """What both keys sign, for the kind of message that the statement stands in."""
        fields = [kind, self.run, self.role.value, self.place, self.number, self.former, self.public]
        return KEY_CONTEXT + pack(fields)

    def proven(self, kind: str) -> bool:
        """Whether the key that begins, if one does, signed the statement."""
        if self.public == NOBODY:
            return self.proof == NO_SIGNATURE
        return verify_signature(self.public, self.proof, self.signed_bytes(kind))

    def signed(self, kind: str, public: bytes) -> bool:
        """Whether that key, as the one that may end the former, signed the statement."""
        return verify_signature(public, self.signature, self.signed_bytes(kind))


class KeyChange(Message):
    """A record of `global` that changes a key: the statement, and what the controller had read of a gate's log."""

    run: Id16
    index: U63
    """Leaf index in the log of `global`. From the next manifest on the new key counts; if it is the controller's, this
    manifest is signed with it, too."""
    statement: KeyStatement
    read: U63
    """Of a gate's key: manifests of its delta log that the controller had read; else 0."""
    root: Digest
    """RFC 6962 root over them."""
    prefix: Digest


class KeyNext(KeyChange):
    """An actor's key is followed by another one. The former one signed that."""

    kind: ClassVar[str] = "key.next"


class KeyEnd(KeyChange):
    """An actor's key was lost or stolen. The operator, whom the run manifest names, signed that."""

    kind: ClassVar[str] = "key.end"


CHANGES: dict[str, type[KeyNext] | type[KeyEnd]] = {KeyNext.kind: KeyNext, KeyEnd.kind: KeyEnd}


class StatementFile(Fields):
    """A statement as a file: JSON with the bytes in hexadecimal, on its way from its author to the controller."""

    change: Literal["key.next", "key.end"]
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    role: Annotated[KeyRole, Field(strict=False)]
    place: U16
    number: U63
    former: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    public: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    proof: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def of(cls, kind: str, statement: KeyStatement) -> Self:
        """The file of a statement that is to stand in a message of that kind."""
        fields = {
            name: value.hex() if isinstance(value, bytes) else value
            for name, value in statement
            if name != "role"
        }
        return cls.model_validate({**fields, "role": statement.role, "change": kind})

    def statement(self) -> KeyStatement:
        """The statement; nothing about it is checked but its form."""
        return KeyStatement(
            run=bytes.fromhex(self.run),
            role=self.role,
            place=self.place,
            number=self.number,
            former=bytes.fromhex(self.former),
            public=bytes.fromhex(self.public),
            proof=bytes.fromhex(self.proof),
            signature=bytes.fromhex(self.signature),
        )

    def encode(self) -> bytes:
        """The file's bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a file.

        Raises:
            Refused: it is no statement of a change of key.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:64] for part in first["loc"]) or "the file"
            raise Refused(
                Reason.MALFORMED, f"no statement of a change of key, {where}: {first['msg'][:200]}"
            ) from None


def state_change(
    kind: str,
    *,
    run: bytes,
    actor: tuple[KeyRole, int],
    number: int,
    former: bytes,
    following: Signer | None,
    author: Signer,
) -> KeyStatement:
    """Sign a change of an actor's key.

    Args:
        kind: "key.next" or "key.end".
        run: id of the run.
        actor: whose key it is.
        number: of the change among the actor's, from 1.
        former: the public key that ends.
        following: the key that begins; None: none does.
        author: the key that ends for "key.next", the operator's for "key.end".
    """
    role, place = actor
    public = NOBODY if following is None else following.public
    draft = KeyStatement(
        run=run,
        role=role,
        place=place,
        number=number,
        former=former,
        public=public,
        proof=NO_SIGNATURE,
        signature=NO_SIGNATURE,
    )
    data = draft.signed_bytes(kind)
    proof = NO_SIGNATURE if following is None else following.sign(data)
    return draft.model_copy(update={"proof": proof, "signature": author.sign(data)})
