"""What the controller writes on `global`: genesis, commits, refusals, changes of keys, and the close."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from echelon.actors.exchange import Writer
from echelon.audit.log import TopicLog
from echelon.bus.base import Outgoing
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.relay import is_relayed
from echelon.laws.transcript import Transcript
from echelon.messages.adapter import Vector
from echelon.messages.exchange import (
    Close,
    CloseReason,
    Commit,
    Genesis,
    LogHead,
    Payload,
    Refusal,
    RefusalReason,
)
from echelon.messages.keys import CHANGES, KeyEnd, KeyNext, KeyRole, KeyStatement
from echelon.messages.manifest import RunManifest
from echelon.rounds.controller.drafts import CommitDraft


class GlobalWriter:
    """Makes the signed records of `global`. What it made counts as written, and deltas are held against it.

    Args:
        writer: the single writer of the topic.
        manifest: the run's terms.
        logs: the delta logs by topic, in the order of the manifest's boundaries; a commit says how far each was read.
        transcript: what stands on `global`, for what deltas say that they had read.
    """

    def __init__(
        self, writer: Writer, manifest: RunManifest, *, logs: Mapping[str, TopicLog], transcript: Transcript
    ) -> None:
        self._manifest, self._run = manifest, manifest.run_id
        self._writer, self._logs, self._transcript = writer, logs, transcript

    def genesis(self, sealed: bytes, initial: Vector) -> list[Outgoing]:
        """The records of genesis: the sealed run manifest and the adapter, float32[d]."""
        adapter = initial.astype("<f4", copy=False)
        payload = b"".join((sealed, adapter.data))
        described = Payload.of(payload, b"genesis")
        records = self._writer.chunks(payload, described)
        del payload  # the records have it
        genesis = Genesis(
            run=self._run,
            index=0,
            manifest_length=len(sealed),
            manifest_sha256=_sha256(np.frombuffer(sealed, np.uint8)),
            adapter_sha256=_sha256(adapter),
            payload=described,
            prefix=self._writer.prefix,
        )
        records.append(self._record(genesis))
        self._writer.log.take_initial()
        return records

    def commit(self, draft: CommitDraft) -> tuple[Commit, list[Outgoing]]:
        """A commit, and its records; of a relayed one that is its manifest alone."""
        payload = draft.adapter.astype("<f4", copy=False).data.cast("B")  # no copy of it
        described = Payload.of(payload, b"commit %d" % draft.commit)
        relayed = is_relayed(self._manifest, draft.commit, draft.tokens)
        records = [] if relayed else self._writer.chunks(payload, described)
        commit = Commit(
            run=self._run,
            index=self._writer.next_number,
            commit=draft.commit,
            merged=draft.merged,
            heads=self._heads(),
            pace=draft.pace,
            measured=draft.measured,
            tokens=draft.tokens,
            adapter_sha256=draft.adapter_sha256,
            state_sha256=draft.state_sha256,
            payload=described,
            prefix=self._writer.prefix,
            relayed=relayed,
        )
        records.append(self._record(commit))
        return commit, records

    def refusal(self, boundary: int, seq: int, *, offset: int, reason: RefusalReason) -> Outgoing:
        """The record of a refusal.

        Args:
            boundary: whose delta it is, as an index in the run manifest.
            seq: the delta's number.
            offset: where the delta stands on its topic.
            reason: why it is refused.
        """
        return self._record(
            Refusal(
                run=self._run,
                index=self._writer.next_number,
                boundary=boundary,
                seq=seq,
                offset=offset,
                reason=reason,
                prefix=self._writer.prefix,
            )
        )

    def close(self, commits: int, reason: CloseReason, adapter: Vector) -> Outgoing:
        """The record that ends the run.

        Args:
            commits: made in the run.
            reason: why it ends.
            adapter: of the newest commit, float32[d].
        """
        return self._record(
            Close(
                run=self._run,
                index=self._writer.next_number,
                commits=commits,
                reason=reason,
                heads=self._heads(),
                adapter_sha256=_sha256(adapter.astype("<f4", copy=False)),
                prefix=self._writer.prefix,
            )
        )

    @property
    def keys(self) -> Keys | None:
        """Everybody's keys, as `global` leaves them; None before genesis."""
        return self._writer.log.keys

    def follow(self) -> None:
        """Have the delta logs judged by the keys that `global` names."""
        keys = self._writer.log.keys
        for place, log in enumerate(self._logs.values()):
            if keys is not None:
                log.follow(keys.line(gate_of_place(place)))

    def change(self, kind: str, statement: KeyStatement) -> Outgoing:
        """The record of a change of a key, which counts from here on.

        Args:
            kind: "key.next" or "key.end".
            statement: what was checked.
        """
        log = list(self._logs.values())[statement.place] if statement.role is KeyRole.GATE else None
        record = self._record(
            CHANGES[kind](
                run=self._run,
                index=self._writer.next_number,
                statement=statement,
                read=0 if log is None else log.tree.size,
                root=bytes(32) if log is None else log.tree.root(),
                prefix=self._writer.prefix,
            )
        )
        self.follow()
        return record

    def _heads(self) -> tuple[LogHead, ...]:
        return tuple(
            LogHead(boundary=index, size=log.tree.size, root=log.tree.root())
            for index, log in enumerate(self._logs.values())
        )

    def _record(self, message: Genesis | Commit | Refusal | Close | KeyNext | KeyEnd) -> Outgoing:
        """The signed record of a manifest; from here on deltas are held against it."""
        record = self._writer.manifest(message)
        sha256 = hashlib.sha256(record.value).digest()
        self._transcript.append(message, sha256, self._writer.log.tree.root())
        return record


def _sha256(array: NDArray[np.generic]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).data).digest()
