"""Opening the records of a boundary's topics: what a record says, and whether its sender may say it there.

Actors and the boundary's own auditor open records by this same code, which needs no loop and knows no clock.

Every device of a boundary reads the same decisions and adapters, and checks each of them. In one process that is one
check: what a record says and whether its sender signed it follow from its bytes, its topic, and the boundary's keys
alone. Nothing else is shared: what a device makes of a record depends on the device.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from echelon.bus.assembler import Assembler
from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import NO_SCOPE, Dropped, TransferId, is_chunk, read_chunk
from echelon.messages.boundary import BOUNDARY, SealedDelta
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import EXCHANGE, Payload
from echelon.messages.good_signatures import verify_once
from echelon.messages.split import SplitFrame
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.effects import Incoming
from echelon.topics import Catalogue, Plane, Role

KEPT = 128
"""Records that are remembered: devices read the newest ones at about the same time."""

Opened = tuple[Envelope, Message]
Key = tuple[bytes, str, str, bytes]


class OpenedRecords:
    """The newest records that were opened and found good: (run, boundary, topic, value) to what they say.

    Only what was accepted is kept, so a refusal is found anew by everybody. Threads may use it at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Opened] = OrderedDict()

    def get(self, key: Key, open_it: Callable[[], Opened]) -> Opened:
        """What the record says, from memory or by `open_it`.

        Raises:
            Refused: as `open_it` does; nothing is remembered then.
        """
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None:
            return kept
        opened = open_it()
        with self._lock:
            self._kept[key] = opened
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return opened


@dataclass(frozen=True)
class Membership:
    """What an actor needs to know of its boundary to tell its members' records from others.

    Attributes:
        run: the run's 16 bytes.
        boundary: the boundary's name.
        keys: Ed25519 public key (32 bytes) by sender.
        roles: role by sender.
    """

    run: bytes
    boundary: str
    keys: Mapping[str, bytes]
    roles: Mapping[str, Role]


class RecordOpener:
    """Opens records one by one: puts transfers together, decodes, verifies, and takes repeats once.

    Args:
        membership: who belongs to the boundary.
        catalogue: who may write what on which topic.
        assembler: where chunks are kept until their manifest comes.
        repeated: whether a record with that signature was taken from that partition before; it remembers the signature.
        shared: records that were opened before by others of the process; None: each is opened here.
        dropped: is told of unfinished transfers that were given up.
        expects: whether transfers of that scope are taken, given topic, sender and scope; others are passed over.
    """

    def __init__(
        self,
        membership: Membership,
        catalogue: Catalogue,
        assembler: Assembler,
        *,
        repeated: Callable[[TopicPartition, bytes], bool],
        shared: OpenedRecords | None = None,
        dropped: Callable[[Dropped], None] = lambda _dropped: None,
        expects: Callable[[str, str, bytes], bool] = lambda _topic, _sender, scope: scope == NO_SCOPE,
    ) -> None:
        self.membership, self.catalogue, self.assembler = membership, catalogue, assembler
        self._repeated, self._shared, self._dropped, self._expects = repeated, shared, dropped, expects

    def open(self, record: Record) -> Incoming | None:
        """Decode and verify a record; None for a chunk, which is kept until its manifest comes, for a repeat, and
        for a frame of a session that is not expected.

        Raises:
            Refused: with the reason that goes to `deadletter`.
            ChunkError: a chunk, or the payload of a manifest, was refused.
        """
        if is_chunk(record):
            self._chunk(record)
            return None
        if self._shared is not None and record.topic in self.catalogue.boundary.for_all_members:
            key = (self.membership.run, self.membership.boundary, record.topic, record.value)
            envelope, message = self._shared.get(key, lambda: self.verified(record))
        else:
            envelope, message = self.verified(record)
        fields = vars(message)  # of a model, a field that is not there is slow to ask for by `getattr`
        payload = fields.get("payload")
        # A device that checks in again says the same thing on purpose; everything else is said once.
        if record.topic != "checkin" and self._repeated(record.at, envelope.signature):
            if isinstance(payload, Payload):
                self.assembler.discard(envelope.sender.encode(), TransferId(payload.transfer))
            return None
        if fields.get("window", envelope.window) != envelope.window:
            raise Refused(
                Reason.BAD_FIELD, f"{envelope.type}: the envelope and the body name different windows"
            )
        if isinstance(message, SplitFrame) and not self._expects(
            record.topic, envelope.sender, message.session
        ):
            # Of a session that is over: its chunks were passed over, or are not waited for any more.
            self.assembler.discard(envelope.sender.encode(), TransferId(message.payload.transfer))
            return None
        data = None
        if isinstance(payload, Payload):
            data = bytes(
                self.assembler.complete(
                    envelope.sender.encode(), TransferId(payload.transfer), payload.length, payload.sha256
                )
            )
        return Incoming(
            topic=record.topic,
            offset=record.offset,
            sender=envelope.sender,
            window=envelope.window,
            message=message,
            payload=data,
        )

    def _chunk(self, record: Record) -> None:
        """Keep a chunk, once it is known that its sender wrote it, and that the sender may write there.

        Raises:
            Refused: it is under the key of nobody here, of somebody who may not write there, or another signed it.
            ChunkError: it is no signed chunk, or not one of a transfer that may be open.
        """
        sender = record.key.decode(errors="replace")
        public, role = self.membership.keys.get(sender), self.membership.roles.get(sender)
        if public is None or role is None:
            raise Refused(Reason.UNKNOWN_SENDER, "a chunk under the key of nobody in this boundary's roster")
        topic = self.catalogue.topic(Plane.BOUNDARY, record.topic)
        if role not in topic.writers:
            raise Refused(
                Reason.WRONG_SENDER,
                f"a chunk under the key of {sender} ({role.value}), who may not write {record.topic}",
            )
        chunk = read_chunk(record, signed=True)
        if not topic.takes_chunks:
            raise Refused(Reason.WRONG_TOPIC, f"a chunk may not stand on {record.topic}")
        if not self._expects(record.topic, sender, chunk.scope):
            return
        if not verify_once(public, chunk.signature, chunk.signed_bytes(self.membership.run)):
            raise Refused(Reason.BAD_SIGNATURE, f"a chunk that names {sender}")
        for dropped in self.assembler.take(record.key, record, chunk):
            self._dropped(dropped)

    def verified(self, record: Record) -> Opened:
        """What a record says, and who signed it: a function of its bytes, its topic and the boundary's keys.

        Raises:
            Refused: with the reason that goes to `deadletter`.
        """
        try:
            envelope = Envelope.open(record.value)
        except Refused:
            if record.value.startswith(b'{"payloadType"'):
                raise Refused(Reason.WRONG_PLANE, "a record of the exchange plane") from None
            raise
        if envelope.run != self.membership.run:
            raise Refused(Reason.WRONG_RUN, f"{envelope.type[:32]} of another run")
        public = self.membership.keys.get(envelope.sender)
        role = self.membership.roles.get(envelope.sender)
        if public is None or role is None:
            raise Refused(Reason.UNKNOWN_SENDER, f"{envelope.sender} is not in this boundary's roster")
        if any(foreign.kind == envelope.type for foreign in EXCHANGE) and envelope.type != SealedDelta.kind:
            raise Refused(Reason.WRONG_PLANE, f"{envelope.type} is a message of the exchange plane")
        kind = BOUNDARY.find(envelope.type, envelope.type_version)
        topic = self.catalogue.topic(Plane.BOUNDARY, record.topic)
        if envelope.type not in topic.messages:
            raise Refused(Reason.WRONG_TOPIC, f"{envelope.type} may not stand on {record.topic}")
        if role not in topic.writers:
            raise Refused(
                Reason.WRONG_SENDER, f"{envelope.sender} ({role.value}) may not write {record.topic}"
            )
        if not envelope.verified(public, record.topic):
            raise Refused(Reason.BAD_SIGNATURE, f"{envelope.type} that names {envelope.sender}")
        return envelope, kind.decode(envelope.body)
