"""Who may sign the manifests of one topic: its writer's keys, as far as `global` names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echelon.laws.keys import CONTROLLER, Keys, KeySpan, Line, may_sign_delta
from echelon.messages.envelope import Dsse
from echelon.messages.exchange import Delta
from echelon.messages.keys import KeyEnd, KeyNext
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Message, Reason, Refused


class Signers:
    """The keys of one topic's writer, and which of them signed the topic so far.

    Args:
        public: the writer's first key; None: genesis names it.
    """

    def __init__(self, public: bytes | None) -> None:
        self.line: Line = () if public is None else (KeySpan(public),)
        self.first_places: list[int] = [0]
        """Of a delta log: for each of its gate's keys, as far as they were used, the place of the first delta that it,
        or a later one, signed: behind it no former one counts."""
        self._keys: Keys | None = None
        self._facts: Sequence[Sequence[Any]] = ()
        self.proofs: list[bytes] = []
        """Of `global`: the envelopes of the changes of the controller's own key, which others are shown, too."""
        self._number = 0  # which key signed the manifest that is being read

    def begin(self, manifest: RunManifest) -> None:
        """Of `global`: genesis was read."""
        self._keys = Keys.of(manifest)
        self.line = self._keys.line(CONTROLLER)

    def keys(self, manifest: RunManifest | None) -> Keys | None:
        """Of `global`: everybody's keys behind the last manifest; None before genesis."""
        if self._keys is None and manifest is not None:
            self._keys = Keys.of(manifest).with_facts(self._facts)
        return self._keys

    def signed(self, envelope: Dsse, message: Message, *, place: int, keys: Keys | None) -> bool:
        """Whether the writer signed a manifest with a key that counts at its place.

        Args:
            envelope: around the manifest.
            message: what it says.
            place: manifests before it.
            keys: of `global`: everybody's.

        Returns:
            whether it counts; no, if it is signed with a key of the writer that does not count there.

        Raises:
            Refused: nobody signed it who writes here, or it is a change of a key that does not hold.
        """
        line = self.line
        if isinstance(message, KeyNext | KeyEnd) and keys is not None:
            line = keys.after(message).line(CONTROLLER)
        number = next((n for n in reversed(range(len(line))) if envelope.verified(line[n].public)), None)
        if number is None:
            raise Refused(Reason.BAD_SIGNATURE, f"this {message.kind} is not signed by the topic's writer")
        if not isinstance(message, Delta):
            return number == len(line) - 1
        self._number = number
        used = len(self.first_places) - 1
        return may_sign_delta(line, number, place=place, seen=message.seen_size, used=used)

    def placed(self, message: Message, value: bytes, place: int) -> None:
        """A manifest was taken: what it means for the keys of those that follow.

        Args:
            message: what it says.
            value: its envelope.
            place: manifests before it.
        """
        if isinstance(message, Delta):
            self.first_places += [place] * (self._number - len(self.first_places) + 1)
        elif isinstance(message, KeyNext | KeyEnd) and self._keys is not None:
            self._keys = self._keys.after(message)
            self.line = self._keys.line(CONTROLLER)
            if message.statement.actor == CONTROLLER:
                self.proofs.append(value)

    # ---- storage ---------------------------------------------------------------------------------

    @property
    def first(self) -> bytes:
        """The writer's first key; empty before genesis."""
        return self.line[0].public if self.line else b""

    def facts(self) -> list[object]:
        """What a snapshot needs besides the first key: nothing, where no key was changed."""
        facts = self._facts if self._keys is None else self._keys.facts()
        if len(self.line) < 2 and not facts:
            return []
        spans = [[span.public, span.since, span.revokes, span.read] for span in self.line[1:]]
        return [[spans, self.first_places, facts, self.proofs]]

    def restore(self, public: bytes, facts: Sequence[Sequence[Any]]) -> None:
        """Take a snapshot over.

        Raises:
            ValueError, TypeError: it is none.
        """
        self.line = (KeySpan(public),) if public else self.line
        self._keys = None
        for spans, first_places, self._facts, proofs in facts:
            self.line += tuple(KeySpan(*span) for span in spans)
            self.first_places, self.proofs = list(first_places), list(proofs)
