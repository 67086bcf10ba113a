"""Which key an actor signs with, and from when on: one law for whoever reads the exchange.

The run manifest names everybody's first key. `global` holds every change (`key.next`, `key.end`), and the place of such
a record is the time of the change, the same one for all who read. A record of another topic is judged by what it says
that it had read of `global`, and by where it stands:

- a manifest of `global` is signed with the key that the controller has after that manifest;
- a delta is signed with a key that its gate had read of on `global`: no new key signs what is older than itself;
- a key that was *revoked* signs no delta beyond those that the controller had read when it wrote that down, whatever
  such a delta says of itself;
- a key that was *handed on* signs beyond them only what had not read of that yet, and nothing behind a delta that is
  signed with a later key: what was under way arrives, and no old key comes back;
- a head of a log may be signed with a former key as far as that signed the log itself, and with a later one always;
- a cosignature of a witness whose key was handed on stays good, one by a revoked key counts for nothing: nobody can
  tell when it was made, and the new key's next one covers the same records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echelon.messages.keys import NOBODY, KeyChange, KeyEnd, KeyRole, KeyStatement
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Reason, Refused

Actor = tuple[KeyRole, int]
CONTROLLER: Actor = (KeyRole.CONTROLLER, 0)
MAX_CHANGES = 16
"""Most changes of one actor's key in a run: devices are shown all of the controller's with each commit."""


@dataclass(frozen=True, slots=True)
class KeySpan:
    """One key of an actor.

    Attributes:
        public: the key; `NOBODY` while the actor has none.
        since: index of the manifest of `global` that named it; -1: the run manifest did.
        revokes: whether the key before it was revoked, and not handed on.
        read: manifests of a gate's delta log that the controller had read by then; else 0.
    """

    public: bytes
    since: int = -1
    revokes: bool = False
    read: int = 0


Line = tuple[KeySpan, ...]
"""All keys of an actor, in order."""


@dataclass(frozen=True, slots=True)
class HeadKey:
    """A key that may sign heads of a log of at most `largest` manifests (None: of any size)."""

    public: bytes
    largest: int | None = None


def gate_of_place(place: int) -> Actor:
    """A boundary's gate, by the boundary's index in the run manifest."""
    return KeyRole.GATE, place


class Keys:
    """Every actor's keys, as `global` up to some place leaves them. Never changed: `after` gives the next.

    Args:
        lines: the keys of each actor.
        operator: whose signature ends a key that was lost or stolen.
        run: the run's 16 bytes.
    """

    def __init__(self, lines: Mapping[Actor, Line], operator: bytes, run: bytes) -> None:
        self._lines, self._operator, self._run = dict(lines), operator, run

    @classmethod
    def of(cls, manifest: RunManifest) -> Keys:
        """Those that the run manifest names."""
        first = {CONTROLLER: manifest.controller_public}
        first |= {gate_of_place(place): terms.gate_public for place, terms in enumerate(manifest.boundaries)}
        first |= {(KeyRole.WITNESS, place): terms.public for place, terms in enumerate(manifest.witnesses)}
        lines = {actor: (KeySpan(bytes.fromhex(public)),) for actor, public in first.items()}
        return cls(lines, bytes.fromhex(manifest.operator_public), manifest.run_id)

    @property
    def changed(self) -> bool:
        """Whether any key is another one than the run manifest names."""
        return any(len(line) > 1 for line in self._lines.values())

    def line(self, actor: Actor) -> Line:
        """All keys of an actor, in order; empty if the run has no such actor."""
        return self._lines.get(actor, ())

    def current(self, actor: Actor) -> bytes:
        """The newest key of an actor of the run."""
        return self._lines[actor][-1].public

    def key_at(self, actor: Actor, size: int) -> bytes:
        """The key of an actor of the run, for whoever has read the first `size` manifests of `global`."""
        return next(span.public for span in reversed(self._lines[actor]) if span.since < size)

    def check(self, kind: str, statement: KeyStatement) -> None:
        """Whether a statement may be written next.

        Raises:
            Refused: it is of another run or of nobody, it does not follow the newest change of that actor's key, it
                names a key that was in use before, or those who may say so did not sign it.
        """
        line = self._lines.get(statement.actor)
        who = f"change {statement.number} of the key of {statement.role.value} {statement.place}"
        if statement.run != self._run or line is None:
            raise Refused(Reason.WRONG_RUN, f"{who}: the run has no such actor, or it is of another run")
        if statement.number != len(line) or statement.former != line[-1].public:
            raise Refused(
                Reason.OUT_OF_ORDER, f"{who} does not follow the newest one, which is number {len(line) - 1}"
            )
        if len(line) > MAX_CHANGES:
            raise Refused(Reason.TOO_MANY, f"{who}: a key changes {MAX_CHANGES} times in a run at most")
        self._check_following(kind, statement, who)
        if kind != KeyEnd.kind and statement.former == NOBODY:
            raise Refused(
                Reason.BAD_FIELD, f"{who}: that actor has no key; the operator alone gives it one again"
            )
        author = self._operator if kind == KeyEnd.kind else statement.former
        if not statement.signed(kind, author):
            name = "the operator" if kind == KeyEnd.kind else "the key that ends"
            raise Refused(Reason.BAD_SIGNATURE, f"{who} is not signed by {name}")

    def _check_following(self, kind: str, statement: KeyStatement, who: str) -> None:
        if statement.public == NOBODY:
            if kind != KeyEnd.kind or statement.actor == CONTROLLER:
                raise Refused(Reason.BAD_FIELD, f"{who} names no key that follows")
        elif statement.public == self._operator or any(
            span.public == statement.public for line in self._lines.values() for span in line
        ):
            raise Refused(Reason.BAD_FIELD, f"{who} names a key that is, or was, in use in this run")
        if not statement.proven(kind):
            raise Refused(Reason.BAD_SIGNATURE, f"{who}: the key that begins did not sign it")

    def after(self, message: KeyChange) -> Keys:
        """The keys behind a record of `global`.

        Raises:
            Refused: as `check` does.
        """
        statement = message.statement
        self.check(message.kind, statement)
        if statement.role is not KeyRole.GATE and (message.read, message.root) != (0, bytes(32)):
            raise Refused(Reason.BAD_FIELD, "it states a head of a log that this actor does not write")
        span = KeySpan(statement.public, message.index, message.kind == KeyEnd.kind, message.read)
        lines = {**self._lines, statement.actor: (*self._lines[statement.actor], span)}
        return Keys(lines, self._operator, self._run)

    def stated(self, statements: Iterable[tuple[str, KeyStatement]]) -> Keys:
        """The keys once all of these statements stand on `global` that can, in the order of their numbers.

        It says which keys there will be, and not from when on.
        """
        keys = self
        for kind, statement in sorted(statements, key=lambda one: one[1].number):
            try:
                keys.check(kind, statement)
            except Refused:
                continue
            line = (*keys.line(statement.actor), KeySpan(statement.public, revokes=kind == KeyEnd.kind))
            keys = Keys({**keys._lines, statement.actor: line}, self._operator, self._run)
        return keys

    # ---- storage ---------------------------------------------------------------------------------

    def facts(self) -> list[object]:
        """The changes, as plain values for a snapshot."""
        return [
            [role.value, place, [[span.public, span.since, span.revokes, span.read] for span in line[1:]]]
            for (role, place), line in sorted(self._lines.items())
            if len(line) > 1
        ]

    def with_facts(self, facts: Sequence[Sequence[Any]]) -> Keys:
        """These keys, which are the run manifest's, with the changes of a snapshot.

        Raises:
            ValueError, TypeError, KeyError: they are no such changes.
        """
        lines = dict(self._lines)
        for role, place, spans in facts:
            actor = (KeyRole(role), place)
            lines[actor] = (*lines[actor], *(KeySpan(*span) for span in spans))
        return Keys(lines, self._operator, self._run)


def may_sign_delta(line: Line, number: int, *, place: int, seen: int, used: int) -> bool:
    """Whether a key of a gate may sign a delta at that place of its log.

    Args:
        line: the gate's keys.
        number: which of them signed it.
        place: manifests that stand before it in its log.
        seen: manifests of `global` that it says it had read.
        used: which of the keys signed the manifest before it; 0 if there is none.
    """
    own = line[number]
    if number < used or own.public == NOBODY:
        return False
    if number and (seen <= own.since or place < own.read):
        return False
    return all(
        place < later.read or (not later.revokes and seen <= later.since) for later in line[number + 1 :]
    )


def head_keys(line: Line, first_places: Sequence[int | None] | None = None) -> tuple[HeadKey, ...]:
    """The keys that may sign heads of a log, the newest first.

    Args:
        line: the keys of the log's writer.
        first_places: of a delta log, for each key the place of the first delta that it or a later one signed, as far
            as that is known; None: the log is `global`, where records themselves say that.
    """
    keys: list[HeadKey] = []
    largest: int | None = None
    for number in range(len(line) - 1, -1, -1):
        span = line[number]
        if span.public != NOBODY:
            keys.append(HeadKey(span.public, largest))
        if first_places is None:
            bound: int | None = span.since
        else:
            known = first_places[number] if number < len(first_places) else None
            bound = span.read if span.revokes else known
        if bound is not None:
            largest = bound if largest is None else min(largest, bound)
    return tuple(keys)


def cosigning_keys(line: Line) -> tuple[bytes, ...]:
    """The keys of a witness whose cosignatures count, the newest first."""
    keys: list[bytes] = []
    for span in reversed(line):
        if span.public != NOBODY:
            keys.append(span.public)
        if span.revokes:
            break
    return tuple(keys)


__all__ = [
    "CONTROLLER", "MAX_CHANGES", "Actor", "HeadKey", "KeySpan", "Keys", "Line", "cosigning_keys", "gate_of_place",
    "head_keys", "may_sign_delta",
]  # fmt: skip
