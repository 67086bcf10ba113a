"""Reads one exchange topic, record by record: assembles payloads, checks signatures, numbers and the chain.

Gates, controller and auditor all read through this; what they do with a fault is theirs. A fault belongs to
the record that it names; whatever is behind it is read on, so that one damaged record does not hide the next.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import msgpack

from echelon.audit.genesis import open_genesis
from echelon.audit.merkle import Frontier
from echelon.audit.prefix import PrefixChain
from echelon.audit.records import (
    MAX_RECORD_BYTES,
    CrossingChunk,
    LogRecord,
    is_chunk,
    read_chunk,
    read_manifest,
    record_hash,
)
from echelon.audit.signers import Signers
from echelon.audit.transfer import BegunChunk, OpenTransfer
from echelon.errors import EchelonError, StateError
from echelon.laws.hashing import Digest
from echelon.laws.keys import Keys, Line
from echelon.laws.relay import may_relay
from echelon.messages.adapter import F32
from echelon.messages.envelope import Dsse
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Payload, Refusal, RefusalReason
from echelon.messages.keys import KeyEnd, KeyNext
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import Message, Reason, Refused, pack

Manifest = Genesis | Delta | Commit | Refusal | Close | KeyNext | KeyEnd

MAX_PAYLOAD_BYTES = 4 << 30
"""Longest payload that is read before the run's terms are known: genesis, by whoever has no manifest."""
MAX_OPEN_TRANSFERS = 16
"""Transfers of one topic that may be open, the bytes of all of them being those of the longest payload at most; the
oldest is given up first."""
MAX_VOID_RECORDS = 1 << 16
"""Records of one topic that may be part of nothing: neither a manifest nor chunks of one. Each is remembered by its
digest (32 bytes), so that a repeat is known; with one more the topic ends. A writer that crashes leaves none, as it
sends the rest of a transfer after the restart; one that loses its disk leaves a part of one transfer."""
_STATE = b"echelon topic log v2\x00"


class FaultCode(StrEnum):
    """What is wrong with a record, or right but worth telling (`REPEAT`, `VOID`)."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    CORRUPT_CHUNK = "corrupt-chunk"
    CHUNK_ORDER = "chunk-order"
    WRONG_TYPE = "wrong-type"
    WRONG_RUN = "wrong-run"
    BAD_SIGNATURE = "bad-signature"
    ENDED_KEY = "ended-key"
    """Signed with a key of the topic's writer that did not count there: no part of the log."""
    FORK = "fork"
    GAP = "gap"
    PREFIX = "prefix"
    PAYLOAD = "payload"
    GENESIS = "genesis"
    REPEAT = "repeat"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class LogFault:
    """Something about the record at `offset`."""

    code: FaultCode
    offset: int
    detail: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A manifest with a good signature and a number that continues its log.

    `refusal` is why a controller must not merge it all the same, `payload` None if the payload is not whole.
    """

    offset: int
    number: int
    message: Manifest
    value: bytes
    payload: bytes | None
    refusal: RefusalReason | None = None
    digest: Digest | None = None
    """SHA-256 of the payload, if it was begun before the payload was read."""

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the envelope; of genesis, this is what is pinned."""
        return hashlib.sha256(self.value).digest()


@dataclass(frozen=True, slots=True)
class Step:
    """What one record turned out to be."""

    entry: Entry | None = None
    faults: tuple[LogFault, ...] = ()


class TopicLog:
    """The reading end of one topic of one writer."""

    def __init__(
        self,
        topic: str,
        *,
        public: bytes | None = None,
        run: bytes | None = None,
        boundary: int | None = None,
        resync: bool = False,
        hash_commits: bool = True,
        largest: int = MAX_PAYLOAD_BYTES,
        payloads: bool = True,
        inside: bool = False,
    ) -> None:
        """Start at the topic's first record.

        Args:
            topic: its name.
            public: the writer's key; None only for `global`, whose genesis names it.
            run: the run's id; None as above.
            boundary: the index that deltas must carry; None for `global`.
            resync: after a gap go on from the number found (an auditor does, a controller must not).
            hash_commits: check the SHA-256 of commit payloads; a verifier that derives the adapter compares
                bytes.
            payloads: False, for who wrote them: only that of genesis is kept, and there is no `snapshot`.
            inside: whether it is a boundary's `global`, where the gate puts the adapters of relayed commits (`relay`).
            largest: bytes of the longest payload that may stand here; on `global` until genesis is read, which says how
                long adapters are.
        """
        self.topic = topic
        self.chain = PrefixChain(topic)
        self.tree = Frontier()
        self.manifest: RunManifest | None = None
        """The run manifest, once genesis was read (on `global`)."""
        self.initial: F32 | None = None
        """The adapter of genesis, float32[d], until somebody takes it."""
        self.next_number = 0
        self.signers = Signers(public)
        self._run, self._boundary = run, boundary
        self._kinds: tuple[type[Message], ...] = (
            (Delta,) if boundary is not None else (Genesis, Commit, Refusal, Close, KeyNext, KeyEnd)
        )
        self._resync = resync
        self._hash_commits, self._payloads, self._inside = hash_commits, payloads, inside
        self._open: dict[bytes, OpenTransfer] = {}
        self._done: dict[bytes, None] = {}
        self._last = -1  # offset of the last manifest that was an entry
        self._largest = largest
        self._void = 0  # records that are part of nothing, open transfers excepted

    @property
    def keys(self) -> Keys | None:
        """Of `global`: everybody's keys behind the last manifest; None before genesis."""
        return self.signers.keys(self.manifest)

    @property
    def open_bytes(self) -> int:
        """Bytes of transfers without a manifest; never more than one payload of the longest kind has."""
        return sum(transfer.size for transfer in self._open.values())

    @property
    def first_open_offset(self) -> int | None:
        """Offset of the first chunk of the oldest transfer without a manifest; None if there is none."""
        return min((transfer.first for transfer in self._open.values()), default=None)

    @property
    def open_transfers(self) -> int:
        """Transfers without a manifest so far."""
        return len(self._open)

    def take_initial(self) -> F32 | None:
        """The adapter of genesis, float32[d], which this log holds no longer; None if there is none (any more)."""
        taken, self.initial = self.initial, None
        return taken

    def with_proofs(self, envelope: bytes) -> bytes:
        """Of `global`: a manifest's envelope behind those that say which key its writer had, as
        `echelon.laws.versions.open_signed_commit` reads them; they are separated by newlines."""
        return b"\n".join([*self.signers.proofs, envelope])

    def follow(self, line: Line) -> None:
        """Of a delta log: its gate's keys, as far as `global` was read; a log is judged by all that are known."""
        self.signers.line = line

    def read(self, record: LogRecord, begun: BegunChunk | None = None) -> Step:
        """Take the next record. Never raises for what stands in it.

        Args:
            record: behind the one before.
            begun: what `BegunDigests` gave for this very record; None: nothing was begun.
        """
        if self._void > MAX_VOID_RECORDS:
            detail = (
                f"behind more than {MAX_VOID_RECORDS} records that are part of nothing, where the topic ends"
            )
            return Step(None, (LogFault(FaultCode.OVERSIZED, record.offset, detail),))
        size = len(record.key) + len(record.value) + sum(len(n) + len(v) for n, v in record.headers)
        chunk: CrossingChunk | None = None
        faults: list[LogFault] = []
        if size > MAX_RECORD_BYTES:
            faults.append(
                LogFault(
                    FaultCode.OVERSIZED, record.offset, f"{size} bytes; at most {MAX_RECORD_BYTES} may stand"
                )
            )
        elif is_chunk(record):
            try:
                chunk = read_chunk(record, None if begun is None else begun.digest)
            except Refused as error:
                faults.append(LogFault(FaultCode.CORRUPT_CHUNK, record.offset, error.detail))
        digest = record_hash(record, chunk)
        if self.chain.seen(digest):
            return Step(None, (*faults, LogFault(FaultCode.REPEAT, record.offset, "a byte-identical repeat")))
        if faults:
            self._void += 1
            self.chain.append_hash(digest)
            return Step(None, tuple(faults))
        if chunk is not None:
            self.chain.append_hash(digest)
            return Step(None, tuple(self._take(chunk, record.offset, begun)))
        step = self._manifest(record)
        self.chain.append_hash(digest)
        if step.entry is not None:
            self.signers.placed(step.entry.message, record.value, self.tree.size)
            self.tree.append(record.value)
            self._last = record.offset
        else:
            self._void += 1
        return step

    # ---- transfers ----------------------------------------

    def relay(self, record: LogRecord) -> Step:
        """Take a chunk that a gate puts in front of a relayed commit inside its boundary: it is no part of the log.

        One that was taken before changes nothing, as a gate may send it again.
        """
        try:
            chunk = read_chunk(record)
        except Refused as error:
            return Step(None, (LogFault(FaultCode.CORRUPT_CHUNK, record.offset, error.detail),))
        count = self._open[chunk.transfer].count if chunk.transfer in self._open else 0
        if chunk.transfer in self._done or chunk.index < count:
            return Step()
        return Step(None, tuple(self._take(chunk, record.offset, None)))

    def _take(self, chunk: CrossingChunk, offset: int, begun: BegunChunk | None) -> list[LogFault]:
        faults: list[LogFault] = []
        if chunk.length > self._largest:
            self._void += 1
            detail = f"a chunk of a payload of {chunk.length} bytes; at most {self._largest} may stand here"
            return [LogFault(FaultCode.OVERSIZED, offset, detail)]
        if chunk.transfer in self._done:
            self._void += 1
            detail = f"another chunk {chunk.index} of a transfer that was complete before"
            return [LogFault(FaultCode.CHUNK_ORDER, offset, detail)]
        transfer = self._open.get(chunk.transfer)
        if transfer is None:
            if chunk.index:
                self._void += 1
                return [_order(offset, chunk, 0)]
            hashed = None if self._payloads or not self.signers.line else hashlib.sha256()
            transfer = OpenTransfer(chunk.length, chunk.total, offset, hashed=hashed)
            self._open[chunk.transfer] = transfer
        if (chunk.total, chunk.length) != (transfer.total, transfer.length) or chunk.index != transfer.count:
            self._void += 1
            return [_order(offset, chunk, transfer.count)]
        transfer.add(chunk.data, begun)
        # The newest alone is within the bound: what it has is no more than what it announced.
        while len(self._open) > MAX_OPEN_TRANSFERS or self.open_bytes > self._largest:
            given_up = self._open.pop(next(iter(self._open)))
            self._void += given_up.count
            faults.append(LogFault(FaultCode.VOID, given_up.first, "a transfer that was given up"))
        return faults

    def _payload_of(self, message: Genesis | Delta | Commit) -> tuple[bytes | None, str]:
        """The payload of a manifest, and what is wrong with it; a relayed commit has none outside of a boundary."""
        if not isinstance(message, Commit) or not message.relayed or self._inside:
            return self._complete(
                message.payload, check=self._hash_commits or not isinstance(message, Commit)
            )
        if self.manifest is None or may_relay(self.manifest.exchange, message.commit):
            return None, ""
        return None, f"commit {message.commit} comes without its adapter, which the run's terms want with it"

    def _complete(self, payload: Payload, *, check: bool) -> tuple[bytes | None, str]:
        transfer = self._open.pop(payload.transfer, None)
        if transfer is None:
            return None, f"no chunk of transfer {payload.transfer.hex()} stands before it"
        if transfer.count != transfer.total:
            return None, f"chunk {transfer.count} of {transfer.total} of its payload is missing"
        if transfer.length != payload.length:
            return None, f"its chunks have {transfer.length} bytes, it says {payload.length}"
        if check and transfer.sha256() != payload.sha256:
            return None, "its payload has another SHA-256 than it says"
        return transfer.payload(), ""

    # ---- manifests ----------------------------------------

    def _manifest(self, record: LogRecord) -> Step:
        offset = record.offset

        def fault(code: FaultCode, detail: str) -> LogFault:
            return LogFault(code, offset, detail)

        try:
            envelope, manifest = read_manifest(record)
        except Refused as error:
            code = FaultCode.OVERSIZED if error.reason is Reason.OVERSIZED else FaultCode.MALFORMED
            return Step(None, (fault(code, str(error)),))
        message = self._allowed(manifest)
        if message is None:
            return Step(
                None, (fault(FaultCode.WRONG_TYPE, f"a {manifest.kind} may not stand on {self.topic}"),)
            )
        payload: bytes | None = None
        digest: Digest | None = None
        problem = ""
        kept: dict[bytes, OpenTransfer] = {}
        if isinstance(message, Genesis | Delta | Commit):
            # The payload is looked up before the signature is known to be good; a forged manifest must not
            # use it up.
            transfer = message.payload.transfer
            if transfer in self._open:
                kept[transfer] = self._open[transfer]
                digest = kept[transfer].digest()
            payload, problem = self._payload_of(message)
        refused = self._authentic(envelope, message, payload, offset)
        if refused is not None:
            self._open |= kept
            return Step(None, (refused,))
        return self._place(record, message, payload, problem, digest)

    def _allowed(self, message: Message) -> Manifest | None:
        if not isinstance(message, Manifest) or not isinstance(message, self._kinds):
            return None
        if isinstance(message, Genesis) != (not self.signers.line):
            return None  # genesis comes first and once; before it there is no key to check anything by
        return message

    def _authentic(
        self, envelope: Dsse, message: Manifest, payload: bytes | None, offset: int
    ) -> LogFault | None:
        if isinstance(message, Genesis):
            if payload is None:
                return LogFault(
                    FaultCode.GENESIS, offset, "the payload of genesis is not whole; nothing can be verified"
                )
            try:
                manifest, adapter = open_genesis(message, payload)
            except EchelonError as error:
                return LogFault(FaultCode.GENESIS, offset, f"genesis does not hold: {error}")
            if not envelope.verified(bytes.fromhex(manifest.controller_public)):
                return LogFault(
                    FaultCode.BAD_SIGNATURE, offset, "genesis is not signed by the controller it names"
                )
            self.manifest, self.initial = manifest, adapter
            self._largest = 4 * len(adapter)  # nothing longer than an adapter stands behind it
            self._run = manifest.run_id
            self.signers.begin(manifest)
            return None
        fault = self._signed(envelope, message, offset)
        if fault is not None:
            return fault
        if message.run != self._run:
            return LogFault(FaultCode.WRONG_RUN, offset, f"this {message.kind} is of run {message.run.hex()}")
        if isinstance(message, Delta) and message.boundary != self._boundary:
            return LogFault(FaultCode.WRONG_RUN, offset, f"this delta is of boundary {message.boundary}")
        return None

    def _signed(self, envelope: Dsse, message: Manifest, offset: int) -> LogFault | None:
        """What is wrong with the signature of a manifest at this place."""
        try:
            if self.signers.signed(envelope, message, place=self.tree.size, keys=self.keys):
                return None
        except Refused as error:
            return LogFault(FaultCode.BAD_SIGNATURE, offset, error.detail)
        detail = f"this {message.kind} is signed with a key of its writer that does not count here: {envelope.keyid}"
        return LogFault(FaultCode.ENDED_KEY, offset, detail)

    def _place(
        self, record: LogRecord, message: Manifest, payload: bytes | None, problem: str, digest: Digest | None
    ) -> Step:
        number = message.seq if isinstance(message, Delta) else message.index
        faults = []
        refusal: RefusalReason | None = None
        if number < self.next_number:
            detail = f"another {message.kind} under number {number}, which was taken before"
            return Step(None, (LogFault(FaultCode.FORK, record.offset, detail),))
        if number > self.next_number:
            detail = f"number {number} where {self.next_number} must stand: what was between is missing"
            faults.append(LogFault(FaultCode.GAP, record.offset, detail))
            refusal = RefusalReason.BAD_SEQUENCE
            if not self._resync:
                return Step(None, tuple(faults))
        if message.prefix != self.chain.value:
            between = f"offsets {self._last + 1} to {record.offset - 1}"
            if self._last + 1 > record.offset - 1:
                between = "the records"
            detail = (
                f"its prefix is not that of what stands before it: {between} lost, gained or changed a record"
            )
            faults.append(LogFault(FaultCode.PREFIX, record.offset, detail))
            refusal = refusal or RefusalReason.BAD_PREFIX
            # The signature vouches for the writer's own history: going on from it confines the damage to this
            # stretch.
            self.chain.value = message.prefix
        if problem:
            faults.append(LogFault(FaultCode.PAYLOAD, record.offset, problem))
        if isinstance(message, Genesis | Delta | Commit):
            self._done[message.payload.transfer] = None
        self.next_number = number + 1
        return Step(
            Entry(
                offset=record.offset,
                number=number,
                message=message,
                value=record.value,
                payload=payload,
                refusal=refusal,
                digest=digest,
            ),
            tuple(faults),
        )

    # ---- storage ----------------------------------------

    def snapshot(self) -> bytes:
        """The state after the last record: reading goes on behind it from here, without the records
        before."""
        transfers = [[t, o.length, o.total, o.first, o.parts] for t, o in self._open.items()]
        body = pack(
            [
                self.topic,
                self.chain.encode(),
                self.tree.encode(),
                self.next_number,
                self._last,
                transfers,
                b"".join(self._done),
                self.signers.first,
                self._run or b"",
                [self._largest, self._void],
                *self.signers.facts(),
            ]
        )
        return _STATE + hashlib.sha256(body).digest() + body

    def restore(self, data: bytes) -> None:
        """Take over a snapshot of this topic. `manifest` and `initial` are not in it.

        Raises:
            StateError: damaged, or of another topic.
        """
        head = len(_STATE) + 32
        body = data[head:]
        if data[:head] != _STATE + hashlib.sha256(body).digest():
            raise StateError(
                f"the stored position in {self.topic} is damaged: remove it and read the topic again"
            )
        with stored(f"the stored position in {self.topic}"):
            fields = msgpack.unpackb(
                body, raw=False, use_list=False, max_bin_len=len(body), max_str_len=len(body)
            )
            topic, chain, tree, self.next_number, self._last, transfers, done, public, run, bounds, *keys = (
                fields
            )
            if topic != self.topic:
                raise StateError(f"the stored position is one in {topic}, not in {self.topic}")
            self.chain, self.tree = PrefixChain.decode(topic, chain), Frontier.decode(tree)
            self.signers.restore(public, keys)
            self._run = run or self._run
            self._largest, self._void = bounds
            self._done = dict.fromkeys(done[at : at + 16] for at in range(0, len(done), 16))
            self._open = {
                transfer: OpenTransfer.of(parts, length=length, total=total, first=first)
                for transfer, length, total, first, parts in transfers
            }


def _order(offset: int, chunk: CrossingChunk, expected: int) -> LogFault:
    detail = f"chunk {chunk.index} where chunk {expected} of its transfer must stand"
    return LogFault(FaultCode.CHUNK_ORDER, offset, detail)
