"""A small exchange written the way the real actors write it: real keys, real records, a controller core in between."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from echelon.audit.log import TopicLog
from echelon.audit.merkle import Frontier
from echelon.audit.prefix import PrefixChain
from echelon.audit.records import CHUNK_BYTES, Headers, StoredRecord, chunk_digest, manifest_record
from echelon.laws.relay import is_relayed
from echelon.messages.adapter import AdapterLayout
from echelon.messages.envelope import Signer
from echelon.messages.exchange import (
    Close,
    CloseReason,
    Commit,
    Delta,
    DeltaCodec,
    Genesis,
    LogHead,
    Pace,
    Payload,
    Refusal,
    RefusalReason,
    WindowSummary,
)
from echelon.messages.manifest import (
    BoundaryTerms,
    Budget,
    ExchangeTerms,
    OuterKind,
    OuterTerms,
    RunManifest,
    SecureTerms,
    Weighting,
)
from echelon.messages.wire import Message
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.controller.drafts import CommitDraft

RUN = bytes(range(16))
OPERATOR = Signer(b"\x01" * 32)
CONTROLLER = Signer(b"\x02" * 32)
GATES = tuple(Signer(bytes([10 + index]) * 32) for index in range(64))
CONFIG = '{"peft_type":"LORA","r":2}'


def terms(
    *,
    dim: int = 96,
    boundaries: int = 2,
    kind: OuterKind = OuterKind.AVERAGE,
    weighting: Weighting = Weighting.EQUAL,
    codec: DeltaCodec = DeltaCodec.INT16,
    deltas_per_commit: int = 2,
    staleness: tuple[int, ...] = (256, 181, 148),
    commits: int = 0,
    tokens: int = 0,
    seconds: int = 0,
    patience: int = 0,
    windows_max: int = 4,
    pending_max: int = 4,
    report_loss: bool = True,
    full_every: int | None = None,
    brief_state: bool = True,
) -> RunManifest:
    layout = AdapterLayout.of(
        {"layer.0.lora_A.weight": (1, dim // 2), "layer.0.lora_B.weight": (dim // 2, 1)}
    )
    return RunManifest(
        run=RUN.hex(),
        model="tiny",
        model_sha256="ab" * 32,
        layout=layout.json.decode(),
        adapter_config=CONFIG,
        secure=SecureTerms(
            k_min=3,
            colluding=1,
            cohort_max=32,
            clip_micro=1_000_000,
            scale_bits=20,
            bucket_tokens=1024,
            n_max=16,
            staleness=(256, 181),
        ),
        exchange=ExchangeTerms(
            codec=codec,
            staleness=staleness,
            deltas_per_commit=deltas_per_commit,
            windows_max=windows_max,
            pending_max=pending_max,
            report_loss=report_loss,
            density_ppm=50_000 if codec is DeltaCodec.SPARSE else None,
            full_every=full_every,
        ),
        outer=OuterTerms(
            kind=kind,
            weighting=weighting,
            lr_ppm=700_000,
            momentum_ppm=900_000,
            beta2_ppm=990_000,
            epsilon_ppb=1_000_000,
            brief_state=brief_state and kind is not OuterKind.AVERAGE,
        ),
        pace=Pace(steps=10, windows=2, mu_ppm=0),
        budget=Budget(commits=commits, tokens=tokens, seconds=seconds, patience=patience),
        boundaries=tuple(
            BoundaryTerms(
                name=chr(ord("a") + index) if boundaries <= 26 else f"b{index}",
                gate_public=GATES[index].public.hex(),
                enrolment_public="cd" * 32,
                roster_sha256="ef" * 32,
                slots=8,
            )
            for index in range(boundaries)
        ),
        controller_public=CONTROLLER.public.hex(),
        operator_public=OPERATOR.public.hex(),
    )


def window(
    number: int,
    *,
    heads: int = 4,
    n: int = 40,
    tokens: int = 4096,
    eval_commit: int = 0,
    eval_loss: float = 0.0,
) -> WindowSummary:
    each = n // heads * 256
    return WindowSummary(
        window=number,
        heads=heads,
        n=n,
        weight=each * heads,
        weight2=each * each * heads,
        roster_root=bytes([number % 256]) * 32,
        norm2=1 << 30,
        mean2=(1 << 30) // (2 * each * heads),
        tokens=tokens,
        loss=0,
        loss_tokens=0,
        eval_commit=eval_commit,
        eval_loss=round(eval_loss * 100 * 65536),
        eval_tokens=100 if eval_loss else 0,
    )


class TopicWriter:
    """Appends to one topic as a gate or the controller does."""

    def __init__(self, topic: str, signer: Signer, run: bytes = RUN) -> None:
        self.topic = topic
        self.signer = signer
        self.run = run
        self.records: list[StoredRecord] = []
        self.chain = PrefixChain(topic)
        self.tree = Frontier()
        self.number = 0

    def append(self, key: bytes, headers: Headers, value: bytes) -> StoredRecord:
        record = StoredRecord(self.topic, len(self.records), key, value, headers, 1_700_000_000_000)
        self.records.append(record)
        self.chain.append(record)
        return record

    def chunks(self, payload: bytes, described: Payload, *, upto: int | None = None) -> None:
        parts = [payload[at : at + CHUNK_BYTES] for at in range(0, len(payload), CHUNK_BYTES)]
        for index, part in enumerate(parts[:upto]):
            self.append(
                b"chunk", chunk_headers(self.topic, b"chunk", described, index, len(parts), part), part
            )

    def manifest(self, message: Message) -> StoredRecord:
        self.number += 1
        record = self.append(*manifest_record(self.signer, message, self.run))
        self.tree.append(record.value)
        return record


def chunk_headers(topic: str, key: bytes, described: Payload, index: int, total: int, part: bytes) -> Headers:
    headers: Headers = (
        ("kind", b"chunk"),
        ("transfer", described.transfer),
        ("index", struct.pack(">I", index)),
        ("total", struct.pack(">I", total)),
        ("length", struct.pack(">Q", described.length)),
    )
    return (*headers, ("sha256", chunk_digest(topic, key, headers, part)))


@dataclass
class Exchange:
    """The exchange of one run under construction; `topics` is what an auditor is given."""

    manifest: RunManifest
    seed: int = 0
    core: ControllerCore = field(init=False)
    main: TopicWriter = field(init=False)
    gates: list[TopicWriter] = field(init=False)
    logs: list[TopicLog] = field(init=False)
    genesis_sha256: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        run = self.manifest.run_id
        self.main = TopicWriter("global", CONTROLLER, run)
        self.gates = [
            TopicWriter(f"delta.{b.name}", GATES[i], run) for i, b in enumerate(self.manifest.boundaries)
        ]
        self.logs = [
            TopicLog(gate.topic, public=gate.signer.public, run=run, boundary=i)
            for i, gate in enumerate(self.gates)
        ]
        dim = self.manifest.adapter_layout().dim
        adapter = self.random.normal(0, 0.1, dim).astype(np.float32)
        sealed = self.manifest.seal(OPERATOR)
        payload = sealed + adapter.tobytes()
        described = Payload.of(payload, b"genesis")
        self.main.chunks(payload, described)
        self.core = ControllerCore(self.manifest, adapter)
        record = self.write(
            Genesis(
                run=run,
                index=0,
                manifest_length=len(sealed),
                manifest_sha256=hashlib.sha256(sealed).digest(),
                adapter_sha256=hashlib.sha256(adapter.tobytes()).digest(),
                payload=described,
                prefix=self.main.chain.value,
            )
        )
        self.genesis_sha256 = hashlib.sha256(record.value).digest()
        self.next_window = [0] * len(self.gates)

    @property
    def topics(self) -> dict[str, list[StoredRecord]]:
        return {writer.topic: list(writer.records) for writer in (self.main, *self.gates)}

    def write(self, message: Genesis | Commit | Refusal | Close) -> StoredRecord:
        """A manifest on `global`."""
        record = self.main.manifest(message)
        sha256 = hashlib.sha256(record.value).digest()
        self.core.transcript.append(message, sha256, self.main.tree.root())
        return record

    def windows(self, boundary: int, count: int = 2, **fields: float) -> tuple[WindowSummary, ...]:
        start = self.next_window[boundary]
        self.next_window[boundary] += count
        return tuple(window(start + i, **fields) for i in range(count))  # type: ignore[arg-type]

    def seen(self) -> dict[str, object]:
        """What a gate states of `global` that has read all of it."""
        return {"seen_size": self.main.tree.size, "seen_root": self.main.tree.root()}

    def delta(
        self,
        boundary: int,
        *,
        base: int | None = None,
        windows: tuple[WindowSummary, ...] | None = None,
        vector: np.ndarray | None = None,
        spoil: Callable[[bytes], bytes] | None = None,
        offer: bool = True,
        **changes: object,
    ) -> RefusalReason | None:
        """A delta whose gate has read all of `global`, and is no liar unless `changes` make it one."""
        gate = self.gates[boundary]
        if vector is None:
            vector = self.random.normal(0, 0.01, self.core.dim)
        payload, exponent = self.core.form.encode(vector)
        payload = payload if spoil is None else spoil(payload)
        described = Payload.of(payload, b"delta %d" % gate.number)
        gate.chunks(payload, described)
        number = self.core.newest if base is None else base
        record = self.core.transcript.base(number)
        delta = Delta(
            run=self.manifest.run_id,
            boundary=boundary,
            seq=gate.number,
            base_commit=number,
            base_sha256=bytes(32) if record is None else record[1],
            seen_size=self.main.tree.size,
            seen_root=self.main.tree.root(),
            windows=self.windows(boundary) if windows is None else windows,
            codec=self.core.form.codec,
            exponent=exponent,
            sync_us=0,
            spacing_us=0,
            payload=described,
            prefix=gate.chain.value,
        )
        gate.manifest(delta.model_copy(update=changes))
        return self.take(boundary) if offer else None

    def take(self, boundary: int) -> RefusalReason | None:
        """The controller reads the boundary's topic to its end, and refuses what it must."""
        log, last = self.logs[boundary], None
        for record in self.gates[boundary].records[log_position(log, self.gates[boundary]) :]:
            entry = log.read(record).entry
            if entry is None:
                continue
            assert isinstance(entry.message, Delta)
            last = self.core.offer(entry.message, entry.payload or b"", entry.offset, fault=entry.refusal)
            if last is not None:
                self.refuse(boundary, entry.number, entry.offset, last)
        return last

    def refuse(self, boundary: int, seq: int, offset: int, reason: RefusalReason) -> None:
        self.write(
            Refusal(
                run=self.manifest.run_id,
                index=self.main.number,
                boundary=boundary,
                seq=seq,
                offset=offset,
                reason=reason,
                prefix=self.main.chain.value,
            )
        )

    def heads(self) -> tuple[LogHead, ...]:
        return tuple(
            LogHead(boundary=i, size=log.tree.size, root=log.tree.root()) for i, log in enumerate(self.logs)
        )

    def commit(self, measured: tuple[int, ...] = ()) -> Commit:
        """The next commit, as the controller writes it."""
        draft = self.core.commit(measured)
        relayed = is_relayed(self.manifest, draft.commit, draft.tokens)
        commit = self.written(draft, draft.payload(), relayed)
        for item in self.core.apply(commit):
            self.refuse(item.boundary, item.seq, item.offset, item.reason)
        return commit

    def written(self, draft: CommitDraft, payload: bytes, relayed: bool, **changes: object) -> Commit:
        """A commit as it stands on `global`; it may say something else than was derived."""
        described = Payload.of(payload, b"commit %d" % draft.commit)
        if not relayed:
            self.main.chunks(payload, described)
        commit = Commit(
            run=self.manifest.run_id,
            index=self.main.number,
            commit=draft.commit,
            merged=draft.merged,
            heads=self.heads(),
            pace=draft.pace,
            measured=draft.measured,
            tokens=draft.tokens,
            adapter_sha256=described.sha256,
            state_sha256=draft.state_sha256,
            payload=described,
            prefix=self.main.chain.value,
            relayed=relayed,
        ).model_copy(update=changes)
        self.write(commit)
        return commit

    def close(self, reason: CloseReason = CloseReason.STOPPED) -> None:
        self.write(
            Close(
                run=self.manifest.run_id,
                index=self.main.number,
                commits=self.core.newest,
                reason=reason,
                heads=self.heads(),
                adapter_sha256=hashlib.sha256(self.core.adapter.tobytes()).digest(),
                prefix=self.main.chain.value,
            )
        )


def log_position(log: TopicLog, writer: TopicWriter) -> int:
    """Index of the first record that the log has not read: every record here is distinct, so its chain counts them."""
    return len(log.chain)


def scenario(manifest: RunManifest | None = None, **fields: object) -> Exchange:
    """Merges, a void transfer, both kinds of refusal, a commit of one delta, and deltas left over at the end."""
    exchange = Exchange(terms(**fields) if manifest is None else manifest)  # type: ignore[arg-type]
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit((1_000, 2_000))
    lost = exchange.random.bytes(min(2 * exchange.core.dim, exchange.core.form.longest))
    exchange.gates[1].chunks(lost, Payload.of(lost, b"lost"))
    exchange.main.chunks(lost, Payload.of(lost, b"lost too"))
    exchange.delta(0, windows=exchange.windows(0, eval_commit=1, eval_loss=3.0))
    assert exchange.delta(1, windows=exchange.windows(1, heads=3, n=30)) is RefusalReason.FLOOR
    exchange.delta(1, windows=exchange.windows(1, eval_commit=1, eval_loss=2.5))
    exchange.commit()
    exchange.delta(0, base=1)
    exchange.commit()
    again = exchange.windows(1)
    assert exchange.delta(1, base=0, windows=again) is RefusalReason.STALE
    exchange.delta(1, base=2, windows=(*again, *exchange.windows(1, 1)))
    exchange.delta(0)
    exchange.commit()
    exchange.delta(1)
    exchange.close()
    return exchange


def renumbered(records: list[StoredRecord]) -> list[StoredRecord]:
    """The records as a log holds them that numbers its offsets without gaps."""
    return [replace(record, offset=offset) for offset, record in enumerate(records)]
