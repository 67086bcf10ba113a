"""Announcing a log's head: what its writer tells witnesses each time that the broker has another manifest of it.

Only what the broker has is announced. What is stored and not sent yet could be lost with the state file, and would
then be written in another form: an announcement of it would make an honest writer look as if it had two histories.
"""

from __future__ import annotations

from collections.abc import Sequence

from echelon.actors.exchange import Writer
from echelon.actors.runtime import Publisher, read_to_end
from echelon.audit.heads import GLOBAL, HEAD, HEAD_PREFIX, LAST, ORDINARY, Head, WatchedLog, headers_of
from echelon.audit.merkle import leaf_hash
from echelon.audit.note import Checkpoint, origin
from echelon.bus.base import Bus, Outgoing, TopicPartition
from echelon.errors import CodecError, StateError
from echelon.laws.keys import head_keys


class Announcer:
    """Keeps one announcement under way until the head topic says as much as the log has.

    Announcements are not stored: after a restart they follow from the two topics.

    Args:
        writer: of the log.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._publisher: Publisher | None = None
        self.topic = HEAD_PREFIX + writer.log.topic
        self._standing = 0
        """Manifests that the broker is known to have."""
        self._announced = 0
        self._under_way = 0
        """Size of the announcement that was handed to the publisher and is not on its topic yet; 0: none is."""
        self._singly = 0
        """Up to here sizes are announced one by one: an announcement of an earlier life may still arrive."""
        self._early: list[bytes] = []
        """Leaf hashes of records that the broker took before the writer had read its own log."""

    @property
    def standing(self) -> int:
        """Manifests of the log that the broker is known to have; 0 until the writer has read its own log."""
        return self._standing

    async def look(self, bus: Bus) -> list[bytes]:
        """All that stands on the head topic, oldest first; may be asked for while the log itself is read.

        Args:
            bus: the log's broker.
        """
        return [record.value async for record in read_to_end(bus, TopicPartition(self.topic), 0, self.topic)]

    def start(self, announced: Sequence[bytes], publisher: Publisher, standing: int) -> None:
        """Go on from what was announced; the writer has read its log, and knows its own keys.

        Args:
            announced: what `look` found.
            publisher: the one that sends the log; its `took` is this object's.
            standing: manifests of the log that were read on the broker.

        Raises:
            StateError: more, or something else, was announced than the log has: the broker lost records that it
                had taken, or a second writer is at work. Or the last announcement is nobody's.
        """
        last = self._newest(announced)
        if last is not None:
            self._check(last)
            self._announced = last.size
        self._standing = max(standing, *(self._writer.sizes.get(leaf, 0) for leaf in self._early), 0)
        self._early.clear()
        self._singly, self._publisher = self._standing, publisher
        self._announce()

    def _newest(self, announced: Sequence[bytes]) -> Checkpoint | None:
        """The newest announcement that counts; None: there is none.

        One that a former key signed over more manifests than its end lets count is passed over, as witnesses do: its
        writer had not read yet that its key had ended, or somebody stole the key.
        """
        log = self._writer.log
        bounds = None if log.topic == GLOBAL else ()
        watched = WatchedLog(
            log.topic, origin(self._writer.run, log.topic), head_keys(log.signers.line, bounds)
        )
        for place, data in enumerate(reversed(announced)):
            wrong = "its writer did not sign it"
            try:
                note = Head.decode(data).note
                checkpoint = watched.signed(note)
                if checkpoint is not None:
                    return checkpoint
                passed_over = watched.ended(note)
            except CodecError as error:
                wrong, passed_over = str(error), False
            if not place and not passed_over:
                raise StateError(f"{self.topic}: its last record is no announcement of {log.topic}: {wrong}")
        return None

    def _check(self, last: Checkpoint) -> None:
        topic, tree = self._writer.log.topic, self._writer.tree
        if last.size > len(tree) or tree.root(last.size) != last.root:
            raise StateError(
                f"{self.topic} announced {last.size} manifests of {topic} with another content than the "
                f"{len(tree)} that stand there: the broker lost records that it had taken, or two processes write "
                "with one key. "
                "Witnesses will cosign no other history: restore the broker's disk, or end this run and start a new one"
            )

    def took(self, records: Sequence[Outgoing]) -> None:
        """The broker has these records."""
        for record in records:
            if record.topic == self.topic:
                self._announced, self._under_way = max(self._announced, self._under_way), 0
            elif record.topic == self._writer.log.topic and record.headers[:1] != (("kind", b"chunk"),):
                leaf = leaf_hash(record.value)
                if self._publisher is None:
                    self._early.append(leaf)
                self._standing = max(self._standing, self._writer.sizes.get(leaf, 0))
        self._announce()

    def _announce(self) -> None:
        if self._publisher is None or self._under_way or self._standing <= self._announced:
            return
        size = self._announced + 1 if self._announced < self._singly else self._standing
        proof = self._writer.tree.consistency(self._announced, size) if self._announced else ()
        head = Head(self._announced, tuple(proof), self._writer.checkpoint_at(size))
        key = LAST if size == self._writer.closed_at else ORDINARY
        self._under_way = size
        # Before what waits: `global` is never more than one batch ahead of what was announced of it.
        self._publisher.put([Outgoing(self.topic, head.encode(), key, headers_of(HEAD))], first=True)
