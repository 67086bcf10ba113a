"""Writing the exchange: signed manifests behind chunked payloads, tied together by the topic's prefix digest.

Reading is `echelon.audit.log.TopicLog`, the same for gates, controller and auditor.
"""

from __future__ import annotations

from echelon.audit.log import FaultCode, LogFault, Step, TopicLog
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint, SignedNote, origin
from echelon.audit.records import StoredRecord, manifest_record
from echelon.bus.base import Outgoing, Record
from echelon.bus.chunks import Transfer, TransferId, to_chunks
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Close, Payload
from echelon.messages.wire import Message, Reason

HARMLESS = frozenset({FaultCode.REPEAT, FaultCode.VOID})
"""What at-least-once delivery and crashes leave behind."""
_REASONS = {
    FaultCode.OVERSIZED: Reason.OVERSIZED,
    FaultCode.CORRUPT_CHUNK: Reason.BAD_TRANSFER,
    FaultCode.CHUNK_ORDER: Reason.BAD_TRANSFER,
    FaultCode.PAYLOAD: Reason.BAD_TRANSFER,
    FaultCode.GENESIS: Reason.BAD_TRANSFER,
    FaultCode.WRONG_TYPE: Reason.WRONG_TOPIC,
    FaultCode.WRONG_RUN: Reason.WRONG_RUN,
    FaultCode.BAD_SIGNATURE: Reason.BAD_SIGNATURE,
    FaultCode.ENDED_KEY: Reason.BAD_SIGNATURE,
    FaultCode.FORK: Reason.FORK,
    FaultCode.GAP: Reason.OUT_OF_ORDER,
    FaultCode.PREFIX: Reason.OUT_OF_ORDER,
}


def reason_of(fault: LogFault) -> Reason:
    """The dead letter's reason for a fault."""
    return _REASONS.get(fault.code, Reason.MALFORMED)


def reportable_faults(step: Step) -> list[LogFault]:
    """The faults of a step that somebody must hear of."""
    return [fault for fault in step.faults if fault.code not in HARMLESS]


class Writer:
    """The single writer of an exchange topic: it reads its own log as everybody does, and so knows its prefix.

    Args:
        log: the reading end of the topic, at its start.
        signer: the writer's key.
        run: the run's 16 bytes.
    """

    def __init__(self, log: TopicLog, signer: Signer, run: bytes) -> None:
        self.log, self.signer, self.run = log, signer, run
        self.tree = Tree()
        """The log's manifests, with what proofs need."""
        self.sizes: dict[bytes, int] = {}
        """Leaf hash of each manifest to the log's size with it."""
        self.closed_at: int | None = None
        """The log's size with the run's close record, once that was written."""

    @property
    def next_number(self) -> int:
        """The sequence number or index of the next manifest."""
        return self.log.next_number

    @property
    def prefix(self) -> bytes:
        """What the next manifest must state about everything before it."""
        return self.log.chain.value

    def checkpoint(self) -> bytes:
        """A signed note over size and root of the log as it was written so far."""
        return self.checkpoint_at(len(self.tree)).encode()

    def checkpoint_at(self, size: int) -> SignedNote:
        """The same over the first `size` manifests."""
        name = origin(self.run, self.log.topic)
        return Checkpoint(name, size, self.tree.root(size)).sign(name, self.signer)

    def chunks(self, payload: bytes | memoryview, described: Payload) -> list[Outgoing]:
        """The chunk records of a payload; they count as written."""
        transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
        records = list(to_chunks(payload, transfer, topic=self.log.topic, key=b"chunk"))
        for record in records:
            self.wrote(record)
        return records

    def manifest(self, message: Message) -> Outgoing:
        """The signed record of a manifest; it counts as written."""
        key, headers, value = manifest_record(self.signer, message, self.run)
        record = Outgoing(self.log.topic, value, key, headers)
        self.wrote(record)
        return record

    def wrote(self, record: Outgoing | Record) -> Step:
        """Take a record into the log, as its readers will."""
        step = self.log.read(StoredRecord(record.topic, -1, record.key, record.value, record.headers))
        if step.entry is not None:
            leaf = leaf_hash(record.value)
            self.tree.append_hash(leaf)
            self.sizes[leaf] = len(self.tree)
            if isinstance(step.entry.message, Close):
                self.closed_at = len(self.tree)
        return step
