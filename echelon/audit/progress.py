"""How far an auditor has verified an exchange: the state between two incremental verifications, as one file's bytes.

The state is taken at the end of `global`, before anything is said that depends on where a log ends, and only of what
verified without an error. So it holds for whatever stands behind it later. It keeps, of every record, its offset, size
and digest, by which the verified part can be compared with what a source shows later, and of every manifest the hash of
its leaf, by which a checkpoint of any size can be checked.

The SHA-256 in front finds accidental damage. It authenticates nobody: whoever can write the file can write a state that
says that anything was verified. It belongs where the auditor alone can write.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import Any, Self

import msgpack
import numpy as np

from echelon.audit.findings import Code, Finding, RefusalFacts, Severity, VerifiedCommit
from echelon.errors import EchelonError, StateError
from echelon.messages.exchange import Close, Merged, Pace, RefusalReason
from echelon.messages.wire import pack, plain

MAGIC = b"echelon audit state v"
FORMAT = 1
"""Number of this format; another number is refused."""
MAX_STATE_BYTES = 16 << 30
"""Largest state that is read: an adapter, a momentum and the waiting deltas of the largest runs are below it."""
_DIGEST = 32
_MOST = (1 << 32) - 1


@dataclass(slots=True)
class Journal:
    """What was read of one topic, record by record: 44 bytes each, and 32 for each leaf of its tree."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("I"))
    digests: bytearray = field(default_factory=bytearray)
    leaves: bytearray = field(default_factory=bytearray)
    first_leaf: int = -1
    """Index of the record that was the first manifest; -1: there was none."""

    def add(self, offset: int, size: int, digest: bytes, leaf: bytes | None) -> None:
        """Take a record: bytes of key, headers and value together, its digest, and its leaf hash if it was one.

        Args:
            offset: of the record; larger than that of the one before.
            size: of key, headers and value together, in bytes.
            digest: SHA-256 of the record, 32 bytes.
            leaf: hash of the leaf that it is in the log, 32 bytes; None: it is none.
        """
        if leaf is not None:
            if self.first_leaf < 0:
                self.first_leaf = len(self.offsets)
            self.leaves += leaf
        self.offsets.append(offset)
        self.sizes.append(min(size, _MOST))
        self.digests += digest

    def __len__(self) -> int:
        return len(self.offsets)

    def digest(self, index: int) -> bytes:
        """Of the record of that index, 32 bytes."""
        return bytes(self.digests[index * _DIGEST : (index + 1) * _DIGEST])

    def leaf_hashes(self, size: int) -> list[bytes]:
        """Of the first `size` manifests."""
        return [bytes(self.leaves[at : at + _DIGEST]) for at in range(0, size * _DIGEST, _DIGEST)]

    def tail(self, records: int, size: int) -> int:
        """Index of the first of the newest records, at most so many and together at most `size` bytes."""
        index = len(self)
        while index and records:
            size -= self.sizes[index - 1]
            if size < 0:
                break
            index, records = index - 1, records - 1
        return index

    def plain(self) -> list[object]:
        """As plain values."""
        numbers = np.array(self.offsets, "<u8").tobytes(), np.array(self.sizes, "<u4").tobytes()
        return [*numbers, bytes(self.digests), bytes(self.leaves), self.first_leaf]

    @classmethod
    def of(cls, values: Any) -> Self:
        """From what `plain` gave."""
        offsets, sizes, digests, leaves, first = values
        journal = cls(digests=bytearray(digests), leaves=bytearray(leaves), first_leaf=first)
        journal.offsets.frombytes(np.frombuffer(offsets, "<u8").astype(np.uint64).tobytes())
        journal.sizes.frombytes(np.frombuffer(sizes, "<u4").astype(np.uint32).tobytes())
        if not len(journal.offsets) == len(journal.sizes) == len(digests) // _DIGEST:
            raise ValueError("its lists of records differ in length")
        return journal


@dataclass(slots=True)
class TopicProgress:
    """One topic as far as it was verified.

    Attributes:
        log: the snapshot of its `TopicLog`.
        last: offset of the last record that was read.
        counts: records, bytes, manifests, repeats.
        journal: what was read.
        faulty: offsets of records that were no entry of the log.
    """

    log: bytes
    last: int
    counts: tuple[int, int, int, int]
    journal: Journal
    faulty: tuple[int, ...] = ()


@dataclass(slots=True)
class AuditProgress:
    """The whole state.

    Attributes:
        reader: which version of the verifier wrote it.
        run: the run's 16 bytes.
        genesis_sha256: of the genesis record's envelope.
        manifest: the signed run manifest, as genesis carries it.
        core: the snapshot of the derivation.
        interlock: the snapshot of what deltas and `global` say of each other.
        adapter_sha256: of the newest adapter that was derived.
        close: the close record, if it was read.
        findings: those so far, none of them an error; `left_out` more were counted.
        commits: the commits that were derived.
        refusals: the refusals that were reproduced.
        owed: refusals that the controller owes, as (boundary, seq, offset, reason).
        topics: by name, `global` first.
        packed: the first `packed_count` commits as they are written, so that nothing is written twice for long runs.
    """

    reader: str
    run: bytes
    genesis_sha256: bytes
    manifest: bytes
    core: bytes
    interlock: bytes
    adapter_sha256: bytes
    close: Close | None
    findings: list[Finding]
    left_out: int
    commits: list[VerifiedCommit]
    refusals: list[RefusalFacts]
    owed: list[tuple[int, int, int, RefusalReason]]
    topics: dict[str, TopicProgress]
    packed: bytes = b""
    packed_count: int = 0

    def encode(self) -> bytes:
        """The file's bytes."""
        body = pack(
            [
                self.reader,
                self.run,
                self.genesis_sha256,
                self.manifest,
                self.core,
                self.interlock,
                self.adapter_sha256,
                b"" if self.close is None else self.close.encode(),
                [[f.code.value, f.severity.value, f.topic, f.offset, f.detail] for f in self.findings],
                self.left_out,
                self.packed + b"".join(map(_packed, self.commits[self.packed_count :])),
                [[one.boundary, one.seq, one.reason.value] for one in self.refusals],
                [[boundary, seq, offset, reason.value] for boundary, seq, offset, reason in self.owed],
                [
                    [
                        name,
                        one.log,
                        one.last,
                        one.counts,
                        one.journal.plain(),
                        array("Q", one.faulty).tobytes(),
                    ]
                    for name, one in self.topics.items()
                ],
            ]
        )
        return _header(FORMAT) + hashlib.sha256(body).digest() + body

    @classmethod
    def decode(cls, data: bytes, *, reader: str) -> Self:
        """Read a state.

        Args:
            data: the file's bytes.
            reader: the version of the verifier that will go on from it.

        Raises:
            StateError: not a state, damaged, or written by another version.
        """
        again = "verify from the start: remove the file, or name another"
        if not data.startswith(MAGIC):
            raise StateError(f"it is no state of an audit; {again}")
        head = len(_header(FORMAT))
        if data[:head] != _header(FORMAT):
            raise StateError(f"it is an audit's state in another format than {FORMAT}; {again}")
        body = data[head + _DIGEST :]
        if hashlib.sha256(body).digest() != data[head : head + _DIGEST]:
            raise StateError(f"it is damaged: it does not have the SHA-256 that it begins with; {again}")
        try:
            fields = msgpack.unpackb(
                body,
                raw=False,
                use_list=False,
                max_bin_len=len(body),
                max_str_len=len(body),
                max_array_len=len(body),
            )
            if fields[0] != reader:
                raise StateError(
                    f"it was written by version {str(fields[0])[:40]}, this is {reader}, which may check more; {again}"
                )
            return cls._of(fields)
        except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
            raise StateError(f"it cannot be read ({error}); {again}") from error
        except StateError:
            raise
        except EchelonError as error:
            raise StateError(f"it cannot be read ({error}); {again}") from error

    @classmethod
    def _of(cls, fields: Any) -> Self:
        (
            reader,
            run,
            genesis,
            manifest,
            core,
            interlock,
            adapter,
            close,
            findings,
            left_out,
            commits,
            refusals,
            owed,
            topics,
        ) = fields
        unpacker = msgpack.Unpacker(
            raw=False, use_list=False, max_buffer_size=max(1, len(commits)), max_bin_len=len(commits)
        )
        unpacker.feed(commits)
        known = [
            VerifiedCommit(
                commit=commit,
                offset=offset,
                merged=tuple(Merged.model_construct(**one) for one in merged),
                tokens=tokens,
                pace=Pace.model_construct(**pace),
                adapter_sha256=sha256,
            )
            for commit, offset, merged, tokens, pace, sha256 in unpacker
        ]
        return cls(
            reader=reader,
            run=run,
            genesis_sha256=genesis,
            manifest=manifest,
            core=core,
            interlock=interlock,
            adapter_sha256=adapter,
            close=Close.decode(close) if close else None,
            findings=[
                Finding(Code(code), Severity(severity), topic, offset, detail)
                for code, severity, topic, offset, detail in findings
            ],
            left_out=left_out,
            commits=known,
            packed=commits,
            packed_count=len(known),
            refusals=[
                RefusalFacts(boundary, seq, RefusalReason(reason)) for boundary, seq, reason in refusals
            ],
            owed=[(boundary, seq, offset, RefusalReason(reason)) for boundary, seq, offset, reason in owed],
            topics={
                name: TopicProgress(
                    log, last, counts, Journal.of(journal), tuple(np.frombuffer(faulty, "<u8").tolist())
                )
                for name, log, last, counts, journal, faulty in topics
            },
        )


def _packed(one: VerifiedCommit) -> bytes:
    merged = [plain(merged) for merged in one.merged]
    return pack([one.commit, one.offset, merged, one.tokens, plain(one.pace), one.adapter_sha256])


def _header(number: int) -> bytes:
    return MAGIC + b"%d\n" % number


def _integers(data: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(data, "<u8").tolist())
