"""Every decoder and reader of the project, with valid inputs, what damages them, and the errors that it may raise."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from echelon.actors.verified_records import RecordOpener
from echelon.audit.cosigned import Witnessed
from echelon.audit.export import (
    ExportedTopic,
    encode_index,
    encode_record,
    encode_topic,
    read_index,
    read_topic,
)
from echelon.audit.genesis import open_genesis
from echelon.audit.heads import CONFLICT, COSIGNATURE, HEAD, MAX_HEAD_BYTES, Head, headers_of
from echelon.audit.incremental import verify_new
from echelon.audit.interlock import Interlock
from echelon.audit.log import TopicLog
from echelon.audit.merkle import Frontier
from echelon.audit.note import Checkpoint, SignedNote, cosigner_vkey, parse_cosigner_vkey
from echelon.audit.openings import Answer, Request
from echelon.audit.prefix import PrefixChain
from echelon.audit.progress import AuditProgress
from echelon.audit.records import StoredRecord, read_chunk, read_manifest
from echelon.audit.verify import verify
from echelon.audit.witness import WitnessCore
from echelon.bus.assembler import Assembler
from echelon.bus.base import Outgoing, Record
from echelon.bus.chunks import ChunkError, to_chunks, transfer_of
from echelon.bus.kafka_url import read_kafka
from echelon.bus.sqlite import SqliteStore
from echelon.bus.sqlite_format import decode_headers, encode_headers
from echelon.bus.store import Hub
from echelon.cli.audit_options import read_policy
from echelon.compute.warm_start import read_weights
from echelon.config.broker import load_broker
from echelon.config.profile import load_profile
from echelon.config.reading import load_yaml
from echelon.config.run import dump, load
from echelon.config.training import DataSettings
from echelon.elsa.shapes import read_shape
from echelon.elsa.trust import Standing
from echelon.errors import (
    BusError,
    CodecError,
    ConfigError,
    EchelonError,
    LimitExceeded,
    ProtocolError,
    StateError,
)
from echelon.laws.delta_codec import decode as decode_delta
from echelon.laws.delta_codec import encode as encode_delta
from echelon.laws.delta_form import DeltaForm
from echelon.laws.transcript import Transcript
from echelon.laws.versions import open_signed_commit
from echelon.messages.adapter import AdapterLayout, adapter_files, vector_from_files
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import BOUNDARY
from echelon.messages.envelope import Dsse, Envelope, Signer
from echelon.messages.exchange import EXCHANGE, DeltaCodec, Genesis, Pace
from echelon.messages.frames import FRAMES, decode_frame, encode_frame, from_double
from echelon.messages.keys import KeyRole, StatementFile, state_change
from echelon.messages.leases import SlotClaim, SlotFree, SlotHold
from echelon.messages.manifest import MANIFEST_TYPE, OuterKind, PaceTerms, RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import Message, Refused, unpack
from echelon.outer.base import OuterState
from echelon.pace.adacomm import AdaComm
from echelon.pace.echelon_da import DriftPace
from echelon.pace.fda import VariancePace
from echelon.pace.fixed import FixedPace
from echelon.pace.qsr import QuadraticSync
from echelon.passphrase import read_passphrase
from echelon.provision.broker_map import load_brokers
from echelon.provision.identities import key_pem, read_key
from echelon.provision.kafka.scope import load_scope
from echelon.report.compare import ComparedRun
from echelon.report.data import load as load_report
from echelon.rounds.controller.core import ControllerCore
from echelon.secagg.roster import Roster, WindowLeaf, roster_root
from echelon.services.config import GateConfig, load_service
from echelon.services.leases import lease_record, opened_lease
from echelon.sim.draw import draw
from echelon.sim.schedule import load as load_schedule
from echelon.topics import load_catalogue
from echelon.training.data.sources import read_source
from echelon.training.fingerprint import load_probes
from echelon.training.split import tensor_format as wire
from echelon.training.split.compress import Exact, LowRank, Quantised, TopK
from echelon.training.split.perturb import decode_basis, encode_basis
from echelon.training.split.sketch import Sketch
from echelon.training.state import TrainerState, of_cut, with_cut
from echelon.wiring.context import gate_assembler, members
from tests.audit.synthetic import CONTROLLER, OPERATOR, scenario, terms
from tests.audit.witnessed import Watching, watched_scenario
from tests.fuzz import mutate, seeds

ROOT = Path(__file__).parents[2]
Read = Callable[[bytes], object]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: as the tests show it.
        read: takes the input; what it returns does not matter.
        seeds: valid inputs.
        mutator: what changes them.
        errors: all that it may raise.
        covers: the functions that it goes through, as `module.qualname` without "echelon.".
        share: how many inputs it gets, relative to one that takes some ten microseconds.
        limit: the longest input that is taken, where there is a bound on it.
        reports: whether it need not refuse anything: it says what is wrong in what it returns, or takes any bytes.
    """

    name: str
    read: Read
    seeds: Callable[[], Sequence[bytes]]
    mutator: mutate.Mutator
    errors: tuple[type[Exception], ...]
    covers: tuple[str, ...] = ()
    share: float = 1.0
    limit: int | None = None
    reports: bool = False

    def inputs(self, count: int, block: int = 0) -> Iterator[bytes]:
        """So many inputs; another block has others, and the same block always has the same."""
        from random import Random

        random = Random(f"{self.name} {block}")
        found = self.seeds()
        for _ in range(count):
            yield self.mutator(random, random.choice(found), found)


def _resealed(name: str, read: Read, seal: Callable[[bytes], bytes], reader: Reader) -> Reader:
    """The same reader behind a digest or a signature that fits the damaged content."""
    return replace(reader, name=name, read=lambda data: read(seal(data)))


# ---- messages ----------------------------------------


def _behaviour() -> bytes:
    one = Behaviour.of(
        number=1,
        version=1,
        terms=bytes(32),
        mean=np.ones(3),
        covariance=np.eye(3),
        counts=np.array([[65535, 0], [0, 65535]], np.uint16),
    )
    return one.encode()


def _message(plane: str, kind: type[Message]) -> Reader:
    def found() -> tuple[bytes, ...]:
        return (*seeds.bodies(kind), *((_behaviour(),) if kind is Behaviour else ()))

    return Reader(
        f"{plane}.{kind.kind}",
        kind.decode,
        cache(found),
        mutate.packed,
        (Refused,),
        ("messages.wire.Message.decode",),
        0.5,
        64 * 1024,
    )


def _messages() -> list[Reader]:
    planes = {"boundary": BOUNDARY, "exchange": EXCHANGE, "frame": FRAMES}
    return [_message(plane, kind) for plane, registry in planes.items() for kind in registry]


def _frames() -> tuple[bytes, ...]:
    return tuple(encode_frame(kind.decode(body), b"tensor") for kind in FRAMES for body in seeds.bodies(kind))


@cache
def _manifest() -> RunManifest:
    return seeds.outcome().assembly.manifest


def _sealed_dsse(payload: bytes) -> bytes:
    return Dsse.seal(OPERATOR, MANIFEST_TYPE, payload).encode()


def _exchange_read(data: bytes) -> tuple[Dsse, Message]:
    """A manifest in a record whose key and header fit what it says it is."""
    try:
        kind = _kind(data)
    except CodecError:
        kind = b"commit"
    return read_manifest(StoredRecord("global", 0, _manifest().run_id, data, (("kind", kind),)))


@cache
def _files() -> dict[str, bytes]:
    layout = AdapterLayout.of({"a.lora_A.weight": (2, 3), "a.lora_B.weight": (3, 2)})
    return adapter_files(layout, b"{}", np.ones(12, np.float32))


def _weights(data: bytes) -> object:
    return vector_from_files({**_files(), "adapter_model.safetensors": data})


def _codecs() -> list[Reader]:
    manifest = terms()
    return [
        *_messages(),
        Reader(
            "envelope",
            Envelope.open,
            seeds.envelopes,
            mutate.packed,
            (Refused,),
            ("messages.envelope.Envelope.open",),
            1,
            65 * 1024,
        ),
        Reader(
            "plain msgpack",
            unpack,
            seeds.envelopes,
            mutate.packed,
            (Refused,),
            ("messages.wire.unpack",),
            1,
            64 * 1024,
        ),
        Reader(
            "dsse",
            lambda data: Dsse.decode(data).verified(CONTROLLER.public),
            seeds.dsse,
            mutate.text,
            (Refused,),
            ("messages.envelope.Dsse.decode",),
            1,
            16 * 1024,
        ),
        Reader(
            "manifest record",
            _exchange_read,
            seeds.dsse,
            mutate.text,
            (Refused,),
            ("audit.records.read_manifest",),
            1,
            16 * 1024,
        ),
        Reader(
            "sealed exchange message",
            lambda data: _exchange_read(
                Dsse.seal(CONTROLLER, "application/vnd.echelon.commit.v1+msgpack", data).encode()
            ),
            lambda: seeds.bodies(next(k for k in EXCHANGE if k.kind == "commit")),
            mutate.packed,
            (Refused,),
            (),
            0.5,
        ),
        Reader(
            "run manifest",
            lambda data: RunManifest.open(_sealed_dsse(data)).adapter_layout(),
            lambda: (manifest.canonical(),),
            mutate.text,
            (CodecError, LimitExceeded),
            ("messages.manifest.RunManifest.open",),
            0.5,
        ),
        Reader(
            "layout",
            AdapterLayout.from_json,
            lambda: (manifest.layout.encode(), _manifest().layout.encode()),
            mutate.text,
            (CodecError, LimitExceeded),
            ("messages.adapter.AdapterLayout.from_json",),
            1,
            16 << 20,
        ),
        Reader(
            "adapter weights",
            _weights,
            lambda: (_files()["adapter_model.safetensors"],),
            mutate.raw,
            (CodecError, LimitExceeded),
            ("messages.adapter.vector_from_files",),
        ),
        Reader(
            "weights of an adapter to start from",
            lambda data: read_weights(data, "x"),
            lambda: (_files()["adapter_model.safetensors"],),
            mutate.raw,
            (ConfigError,),
            ("compute.warm_start.read_weights",),
        ),
        Reader(
            "address of brokers",
            lambda data: read_kafka("kafka://x", data.decode("utf-8", "replace")),
            lambda: (b"a:9092,b.example.org:9093?timeout=3", b"[::1]:1?plaintext=allow"),
            mutate.raw,
            (ConfigError,),
            ("bus.kafka_url.read_kafka",),
        ),
        Reader(
            "frame", decode_frame, cache(_frames), mutate.raw, (Refused,), ("messages.frames.decode_frame",)
        ),
        Reader(
            "double",
            lambda data: from_double(data[:8].ljust(8, b"\0")),
            lambda: (b"\0" * 8, b"\0" * 6 + b"\xf0\x3f"),
            mutate.raw,
            (Refused,),
            ("messages.frames.from_double",),
            0.3,
        ),
        Reader(
            "roster",
            Roster.decode,
            cache(_rosters),
            mutate.packed,
            (CodecError, EchelonError),
            ("secagg.roster.Roster.decode",),
            0.5,
        ),
    ]


def _rosters() -> tuple[bytes, ...]:
    return tuple(keys.roster.encode() for keys in seeds.outcome().assembly.identities.boundaries.values())


# ---- audit ----------------------------------------


@cache
def _log() -> tuple[StoredRecord, ...]:
    return tuple(record for records in scenario().topics.values() for record in records)


def _chunk(data: bytes) -> object:
    """Fields of a record, framed as an export has them."""
    record = next(read_topic("global", io.BytesIO(b"echelon export v1\n" + data)), None)
    return read_chunk(record) if isinstance(record, StoredRecord) else None


@cache
def _exported(topic: str) -> tuple[bytes, ...]:
    return (b"".join(encode_topic(scenario().topics[topic])),)


def _verified(data: bytes) -> object:
    """The whole verifier over a damaged export of `global`."""
    topics: dict[str, Any] = dict(scenario_topics())
    topics["global"] = read_topic("global", io.BytesIO(data))
    return verify(topics)


@cache
def scenario_topics() -> dict[str, list[StoredRecord]]:
    return scenario().topics


def _topic_log(data: bytes) -> object:
    log = TopicLog("global")
    return [
        log.read(record)
        for record in read_topic("global", io.BytesIO(data))
        if isinstance(record, StoredRecord)
    ]


@cache
def _snapshots() -> tuple[bytes, ...]:
    log = TopicLog("global")
    for record in scenario_topics()["global"]:
        log.read(record)
    return (log.snapshot(),)


_HEAD = len(b"echelon topic log v1\x00")


def _restored(body: bytes) -> object:
    """The stored position behind a digest that fits."""
    magic = _snapshots()[0][:_HEAD]
    TopicLog("global").restore(magic + hashlib.sha256(body).digest() + body)
    return None


@cache
def _genesis() -> tuple[Genesis, bytes]:
    assembly = seeds.outcome().assembly
    payload = assembly.sealed + np.ascontiguousarray(assembly.initial, "<f4").tobytes()
    (message,) = (read for value in seeds.dsse() if isinstance(read := _exchange_read(value)[1], Genesis))
    return message, payload


def _kind(value: bytes) -> bytes:
    return Dsse.decode(value).payload_type.removeprefix("application/vnd.echelon.").partition(".")[0].encode()


def _genesis_read(data: bytes) -> object:
    message, _ = _genesis()
    cut = message.manifest_length
    said = {
        "manifest_sha256": hashlib.sha256(data[:cut]).digest(),
        "adapter_sha256": hashlib.sha256(data[cut:]).digest(),
    }
    return open_genesis(message.model_copy(update=said), data)


@cache
def _notes() -> tuple[bytes, ...]:
    checkpoint = Checkpoint("echelon/00/global", 7, bytes(32))
    note = checkpoint.sign("echelon/00/global", CONTROLLER)
    return note.encode(), note.sign("another", OPERATOR).encode()


WATCHING = Watching(watched_scenario()).everything()


def _witnessed(data: bytes) -> object:
    found: list[object] = []
    witnessed = Witnessed(WATCHING.exchange.manifest, lambda *finding: found.append(finding))
    for topic, headers in (("witness.w", COSIGNATURE), ("witness.w", CONFLICT), ("head.global", HEAD)):
        witnessed.read(topic, StoredRecord(topic, 0, b"global", data, headers_of(headers)))
    return found


def _witness_restored(data: bytes) -> object:
    known = WATCHING.cores["w"]
    core = WitnessCore(known.name, known.signer, known.logs)
    core.restore(data)
    return core.snapshot()


def _frontier() -> bytes:
    tree = Frontier()
    for leaf in range(11):
        tree.append(b"%d" % leaf)
    return tree.encode()


@cache
def _boundary_records() -> tuple[bytes, ...]:
    """Records of boundary a: decisions, uploads with their chunks, adapters."""
    topics = seeds.outcome().topics["a"]
    return tuple(
        encode_record(StoredRecord(name, record.offset, record.key, record.value, record.headers))
        for name in ("control", "masked", "model")
        for record in topics[name][:6]
    )


def _boundary_opened(data: bytes) -> object:
    found = next(read_topic("masked", io.BytesIO(b"echelon export v1\n" + data)), None)
    if not isinstance(found, StoredRecord):
        return None
    roster = seeds.outcome().assembly.identities.boundaries["a"].roster
    opener = RecordOpener(
        members(_manifest().run_id, roster),
        load_catalogue(),
        gate_assembler(_manifest(), _manifest().adapter_layout().dim, roster, "model"),
        repeated=lambda _at, _signature: False,
    )
    for topic in ("control", "masked", "model"):
        record = Record(topic, 0, found.offset, found.key, found.value, found.headers, 0)
        try:
            opener.open(record)
        except (Refused, ChunkError):
            continue
    return opener.open(Record("masked", 0, found.offset, found.key, found.value, found.headers, 0))


@cache
def _progress() -> tuple[bytes, ...]:
    topics = scenario_topics()
    kept = verify_new(topics, lambda name, start: iter(topics[name][start:]), None, reader="fuzz").progress
    assert kept is not None
    return (kept.encode(),)


@cache
def _behind_digest() -> tuple[bytes, bytes]:
    """What stands before the SHA-256 of an audit's state, and what it is taken over."""
    (data,) = _progress()
    at = next(at for at in range(len(data)) if data[at : at + 32] == hashlib.sha256(data[at + 32 :]).digest())
    return data[:at], data[at + 32 :]


def _sealed(body: bytes) -> AuditProgress:
    """Read a state whose digest fits what it holds, so that the damage reaches the fields."""
    return AuditProgress.decode(_behind_digest()[0] + hashlib.sha256(body).digest() + body, reader="fuzz")


def _interlocks() -> tuple[bytes, ...]:
    (data,) = _progress()
    return (AuditProgress.decode(data, reader="fuzz").interlock,)


def _interlock_restored(data: bytes) -> None:
    with stored("the audit's state"):
        Interlock(lambda *_: None, _manifest(), allow_open=False).restore(data)


@cache
def _transcripts() -> tuple[bytes, ...]:
    core = scenario().core
    return (core.transcript.encode(),)


def _statements() -> tuple[bytes, ...]:
    statement = state_change(
        "key.next", run=bytes(16), actor=(KeyRole.GATE, 0), number=1, former=Signer(b"\x01" * 32).public,
        following=Signer(b"\x02" * 32), author=Signer(b"\x01" * 32),
    )  # fmt: skip
    return (StatementFile.of("key.next", statement).encode(),)


@cache
def _openings() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Requests and answers of a window."""
    leaves = [WindowLeaf(f"d{place}", 256, 3, bytes(32), bytes(32), bytes(64)) for place in range(5)]
    request = Request(
        run=_manifest().run,
        boundary="a",
        size=2,
        nonce="ab" * 32,
        seq=1,
        window=3,
        index=2,
        heads=len(leaves),
        root=roster_root(leaves).hex(),
    )
    return (request.encode(),), (Answer.to(request, leaves).encode(),)


@cache
def _lease_records() -> tuple[bytes, ...]:
    """What a replica says of its slot."""
    keys, run = seeds.outcome().assembly.identities.boundaries["a"], _manifest().run_id
    slot, key = next(iter(keys.devices.items()))
    said = (
        SlotClaim(holder=bytes(16), after=-1, seconds=20),
        SlotHold(holder=bytes(16), epoch=1, seconds=20),
        SlotFree(epoch=1),
    )
    return tuple(lease_record(slot, message, Signer(key), run).value for message in said)


def _lease_opened(data: bytes) -> object:
    roster = seeds.outcome().assembly.identities.boundaries["a"].roster
    return opened_lease(Outgoing("leases", data).at(0, 0), _manifest().run_id, roster)


def _openings_read() -> list[Reader]:
    return [
        Reader(
            "record of a lease",
            _lease_opened,
            _lease_records,
            mutate.packed,
            (Refused,),
            ("services.leases.opened_lease",),
            0.1,
        ),
        Reader(
            "record of a boundary",
            _boundary_opened,
            _boundary_records,
            mutate.raw,
            (Refused, ChunkError),
            ("actors.verified_records.RecordOpener.open", "bus.chunks.read_chunk"),
            0.1,
        ),
        Reader(
            "audit state",
            lambda data: AuditProgress.decode(data, reader="fuzz"),
            _progress,
            mutate.raw,
            (StateError,),
            ("audit.progress.AuditProgress.decode",),
            0.1,
        ),
        Reader(
            "audit state behind its digest",
            _sealed,
            lambda: (_behind_digest()[1],),
            mutate.packed,
            (StateError,),
            ("audit.progress.AuditProgress.decode",),
            0.1,
        ),
        Reader(
            "interlock of an audit state",
            _interlock_restored,
            _interlocks,
            mutate.packed,
            (StateError,),
            ("audit.interlock.Interlock.restore",),
            0.1,
        ),
        Reader(
            "transcript",
            Transcript.decode,
            _transcripts,
            mutate.raw,
            (CodecError,),
            ("laws.transcript.Transcript.decode",),
        ),
        Reader(
            "statement of a change of a key",
            StatementFile.decode,
            _statements,
            mutate.text,
            (CodecError,),
            ("messages.keys.StatementFile.decode",),
        ),
        Reader(
            "request for an opening",
            Request.decode,
            lambda: _openings()[0],
            mutate.text,
            (CodecError,),
            ("audit.openings.Request.decode",),
        ),
        Reader(
            "answer to a request",
            Answer.decode,
            lambda: _openings()[1],
            mutate.text,
            (CodecError,),
            ("audit.openings.Answer.decode",),
        ),
    ]


def _audit() -> list[Reader]:
    index = encode_index(
        [ExportedTopic("global", "global.records", 1, 2), ExportedTopic("delta.a", "x", 0, 0)]
    )
    chunks = tuple(encode_record(record) for record in _log() if record.headers[0] == ("kind", b"chunk"))[:4]
    return [
        Reader(
            "chunk of the audit",
            _chunk,
            lambda: chunks,
            mutate.raw,
            (Refused,),
            ("audit.records.read_chunk",),
            0.5,
        ),
        Reader(
            "exported topic",
            lambda data: list(read_topic("global", io.BytesIO(data))),
            lambda: _exported("global"),
            mutate.raw,
            (),
            ("audit.export.read_topic",),
            0.5,
            reports=True,
        ),
        Reader(
            "topic log",
            _topic_log,
            lambda: _exported("global"),
            mutate.raw,
            (),
            ("audit.log.TopicLog.read",),
            0.1,
            reports=True,
        ),
        Reader(
            "stored position",
            TopicLog("global").restore,
            _snapshots,
            mutate.raw,
            (StateError, CodecError),
            ("audit.log.TopicLog.restore",),
        ),
        Reader(
            "stored position, resealed",
            _restored,
            lambda: (_snapshots()[0][_HEAD + 32 :],),
            mutate.packed,
            (StateError, CodecError),
        ),
        Reader(
            "verifier",
            _verified,
            lambda: _exported("global"),
            mutate.raw,
            (),
            ("audit.verify.verify",),
            0.02,
            reports=True,
        ),
        Reader(
            "index", read_index, lambda: (index,), mutate.text, (CodecError,), ("audit.export.read_index",)
        ),
        Reader(
            "genesis",
            _genesis_read,
            lambda: (_genesis()[1],),
            mutate.raw,
            (EchelonError,),
            ("audit.genesis.open_genesis",),
            0.3,
        ),
        Reader(
            "note",
            lambda data: SignedNote.decode(data).verified("another", OPERATOR.public),
            _notes,
            mutate.raw,
            (CodecError,),
            ("audit.note.SignedNote.decode",),
            1,
            16 * 1024,
        ),
        Reader(
            "announced head",
            Head.decode,
            lambda: (Head(3, (bytes(32), bytes(range(32))), SignedNote.decode(_notes()[0])).encode(),),
            mutate.raw,
            (CodecError,),
            ("audit.heads.Head.decode",),
            1,
            MAX_HEAD_BYTES,
        ),
        Reader(
            "witness's records",
            _witnessed,
            lambda: tuple(record.value for record in WATCHING.topics["witness.w"]),
            mutate.raw,
            (),
            ("audit.cosigned.Witnessed.read",),
            0.3,
            reports=True,
        ),
        Reader(
            "verifier key",
            lambda data: parse_cosigner_vkey(data.decode("utf-8", "surrogatepass")),
            lambda: (cosigner_vkey("witness.example/w1", CONTROLLER.public).encode(),),
            mutate.raw,
            (CodecError, UnicodeDecodeError),
            ("audit.note.parse_cosigner_vkey",),
        ),
        Reader(
            "witness's state",
            _witness_restored,
            lambda: (WATCHING.cores["w"].snapshot(),),
            mutate.raw,
            (StateError,),
            ("audit.witness.WitnessCore.restore",),
            0.3,
        ),
        Reader(
            "checkpoint",
            lambda data: Checkpoint.parse(data.decode("utf-8", "surrogatepass")),
            lambda: (_notes()[0].rpartition(b"\n\n")[0] + b"\n",),
            mutate.raw,
            (CodecError, UnicodeDecodeError),
            ("audit.note.Checkpoint.parse",),
        ),
        Reader(
            "frontier",
            Frontier.decode,
            lambda: (_frontier(),),
            mutate.raw,
            (CodecError,),
            ("audit.merkle.Frontier.decode",),
        ),
        Reader(
            "prefix chain",
            lambda data: PrefixChain.decode("global", data),
            lambda: (bytes(32), bytes(320)),
            mutate.raw,
            (CodecError,),
            ("audit.prefix.PrefixChain.decode",),
        ),
    ]


# ---- bus ----------------------------------------


def _assembled(data: bytes) -> object:
    found = next(read_topic("masked", io.BytesIO(b"echelon export v1\n" + data)), None)
    if not isinstance(found, StoredRecord):
        return None
    record = Record("masked", 0, found.offset, found.key, found.value, found.headers, 0)
    most = 1 << 20
    assembler = Assembler(
        max_open_bytes_per_sender=most, max_open_transfers_per_sender=2, max_open_bytes_total=most
    )
    return assembler.add(found.key, record)


@cache
def _bus_chunks() -> tuple[bytes, ...]:
    payload = b"\x07" * 5000
    return tuple(
        encode_record(StoredRecord("masked", 0, out.key, out.value, out.headers))
        for out in to_chunks(payload, transfer_of(payload, b"x"), topic="masked", key=b"a-0")
    )


@cache
def _folder() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="echelon-fuzz-")
    _held.append(holder)
    return Path(holder.name)


_held: list[tempfile.TemporaryDirectory[str]] = []


@cache
def _database() -> tuple[bytes, ...]:
    path = _folder() / "sound.sqlite"
    store = SqliteStore(path, hub=Hub(), write_lock=threading.Lock())
    from echelon.bus.base import Outgoing

    store.create_topic("global", 1)
    store.create_topic("delta.a", 2)
    store.append([[Outgoing("global", b"v" * 40, b"k", (("kind", b"x"),)) for _ in range(3)]], 7)
    store.close()
    return (path.read_bytes(),)


def _sqlite(data: bytes) -> object:
    path = _folder() / "damaged.sqlite"
    path.write_bytes(data)
    store = SqliteStore(path, hub=Hub(), write_lock=threading.Lock(), read_only=True)
    try:
        from echelon.bus.base import TopicPartition

        found: list[object] = [store.undeclared()]
        for topic in store.topics():
            at = TopicPartition(topic)
            first, end = store.bounds(at)
            if first < end:
                found.append(store.read(at, first, 256, 1 << 20))
        return found
    finally:
        store.close()


def _bus() -> list[Reader]:
    headers = encode_headers((("kind", b"chunk"), ("é", b"\x00\xff"))).encode()
    return [
        Reader(
            "headers",
            decode_headers,
            lambda: (headers, b"[]"),
            mutate.text,
            (ValueError,),
            ("bus.sqlite_format.decode_headers",),
        ),
        Reader("chunk", _assembled, _bus_chunks, mutate.raw, (ChunkError,), ()),
        Reader(
            "sqlite log",
            _sqlite,
            _database,
            mutate.raw,
            (BusError, ConfigError),
            ("bus.sqlite.SqliteStore.read",),
            0.02,
        ),
    ]


# ---- files that people write ----------------------------------------


def _file(name: str, read: Callable[[Path], object]) -> Read:
    def reading(data: bytes) -> object:
        path = _folder() / name
        path.write_bytes(data)
        return read(path)

    return reading


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _yaml_file(
    name: str, read: Callable[[Path], object], seed: Callable[[], Sequence[object]], covers: str
) -> Reader:
    def found() -> tuple[bytes, ...]:
        return tuple(_json(one) for one in seed())

    return Reader(
        name,
        _file(f"{name.replace(' ', '-')}.yaml", read),
        cache(found),
        mutate.yaml,
        (ConfigError,),
        (covers,),
        0.03,
    )


def _example(name: str) -> Any:
    return yaml.safe_load((ROOT / "examples" / name).read_text())


def _catalogue(path: Path) -> object:
    folder = path.parent / "topics"
    folder.mkdir(exist_ok=True)
    (folder / "exchange.yaml").write_bytes(path.read_bytes())
    (folder / "boundary.yaml").write_bytes((ROOT / "topics" / "boundary.yaml").read_bytes())
    from echelon.topics import _load

    return _load(folder / "exchange.yaml")


_SECURITY = {"ca": "ca.pem", "certificate": "tls.pem"}
_BROKER = {"url": "kafka://b:9093", "security": _SECURITY}


def _gate() -> dict[str, object]:
    return {"manifest_sha256": "ab" * 32, "broker": _BROKER, "boundary": "a", "exchange": _BROKER}


def _environment(data: bytes) -> object:
    path = _folder() / "gate.yaml"
    path.write_bytes(_json(_gate()))
    name, _, value = data.decode("utf-8", "surrogateescape").partition("=")
    return load_service(GateConfig, path, {f"ECHELON_{name}": value})


def _override(data: bytes) -> object:
    path = _folder() / "small.yaml"
    if not path.exists():
        path.write_bytes(_json(_small()))
    return load(path, (data.decode("utf-8", "surrogateescape"),))


def _small() -> dict[str, Any]:
    return {
        "name": "x",
        "budget": {"commits": 2},
        "boundaries": [{"name": "a", "devices": 4, "data": {"source": "text:x"}}],
    }


def _configuration() -> list[Reader]:
    settings = [
        b"sync.steps=3",
        b"boundaries.0.devices=[{id: a, speed: 2}]",
        b"name=x",
        b"boundaries.0.name=b",
    ]
    return [
        _yaml_file(
            "run file",
            load,
            lambda: [
                _small(),
                _example("virtual.yaml"),
                yaml.safe_load(dump(seeds.outcome().assembly.settings)),
            ],
            "config.run.load",
        ),
        _yaml_file("broker file", load_broker, lambda: [_BROKER], "config.broker.load_broker"),
        _yaml_file(
            "profile", load_profile, lambda: [_example("split-profile.yaml")], "config.profile.load_profile"
        ),
        _yaml_file(
            "topics file",
            load_scope,
            lambda: [
                {
                    "broker": _BROKER,
                    "plane": "boundary",
                    "boundary": "a",
                    "devices": ["a-0", "a-1"],
                    "shards": None,
                },
                {"broker": _BROKER, "plane": "exchange", "boundaries": ["a", "b"], "witnesses": []},
            ],
            "provision.kafka.scope.load_scope",
        ),
        _yaml_file(
            "broker map",
            load_brokers,
            lambda: [{"exchange": {"url": "kafka://x:1"}, "boundaries": {"a": {"url": "kafka://y:1"}}}],
            "provision.broker_map.load_brokers",
        ),
        _yaml_file(
            "service",
            lambda path: load_service(GateConfig, path, {}),
            lambda: [_gate()],
            "services.config.load_service",
        ),
        _yaml_file(
            "policy",
            read_policy,
            lambda: [{"quorum": 1, "logs": {"global": 1}, "witnesses": {"w": "ab" * 32}, "lag": 3}],
            "cli.audit_options.read_policy",
        ),
        _yaml_file(
            "topic catalogue",
            _catalogue,
            lambda: [yaml.safe_load((ROOT / "topics" / "exchange.yaml").read_text())],
            "topics.load_catalogue",
        ),
        Reader(
            "yaml",
            lambda data: load_yaml(data, "x"),
            lambda: (_json(_small()), b"{a: [1, 2.5, x], b: null}"),
            mutate.yaml,
            (ConfigError,),
            ("config.reading.load_yaml", "config.reading.read_map"),
            0.1,
        ),
        Reader(
            "environment",
            _environment,
            lambda: (b"BROKER__URL=kafka://c:1", b"BOUNDARY=b", b"BROKER={url: x}"),
            mutate.yaml,
            (ConfigError,),
            (),
            0.05,
        ),
        Reader("override", _override, lambda: tuple(settings), mutate.yaml, (ConfigError,), (), 0.05),
        Reader(
            "probes",
            _file("probes.txt", load_probes),
            lambda: (b"one\n\ntwo\n\nthree lines\nof text\n",),
            mutate.raw,
            (ConfigError, LimitExceeded),
            ("training.fingerprint.load_probes",),
            0.2,
        ),
        Reader(
            "schedule",
            _file("schedule.json", load_schedule),
            lambda: (draw(1).text().encode(),),
            mutate.text,
            (ConfigError,),
            ("sim.schedule.load",),
            0.2,
        ),
        Reader(
            "key",
            _file("key.pem", read_key),
            lambda: (key_pem(b"\x01" * 32),),
            mutate.raw,
            (ConfigError,),
            ("provision.identities.read_key",),
            0.2,
        ),
        Reader(
            "rows",
            _file("rows.jsonl", lambda path: read_source(DataSettings(source=f"jsonl:{path}"))),
            lambda: (b'{"text":"one"}\n{"text":"two","more":[1]}\n',),
            mutate.lines,
            (ConfigError, LimitExceeded),
            ("training.data.sources.read_source",),
            0.1,
        ),
    ]


# ---- run folders ----------------------------------------


def _report(name: str) -> Read:
    def reading(data: bytes) -> object:
        folder = _folder() / name.replace(".", "-")
        folder.mkdir(exist_ok=True)
        for other, content in _run_folder().items():
            (folder / other).write_bytes(data if other == name else content)
        found = load_report(folder)
        text = "\n".join(found.notes) + repr(found)
        return text.encode(), ComparedRun("x", 0, found).settings if name == "config.yaml" else None

    return reading


@cache
def _run_folder() -> dict[str, bytes]:
    summary = {
        "name": "x",
        "base_loss": {"overall": 2.5},
        "audit": {"ok": True, "findings": [{"a": [1]}]},
        "commits": 2,
    }
    metrics = [
        {"kind": "window", "t": 1.0, "boundary": "a", "window": 0, "outcome": "closed", "staleness": [0, 1]},
        {
            "kind": "commit",
            "t": 2.0,
            "commit": 1,
            "merged": [{"boundary": "a", "seq": 0}],
            "cosine": {"a|b": 0.5},
        },
        {"kind": "eval", "t": 3.0, "boundary": "a", "commit": 1, "tokens": 9, "loss": 2.0},
    ]
    return {
        "summary.json": _json(summary),
        "metrics.jsonl": b"\n".join(map(_json, metrics)) + b"\n",
        "samples.json": _json([{"prompt": "a", "before": "b", "after": "c"}]),
        "config.yaml": _json(_small()),
    }


def _folders() -> list[Reader]:
    kinds = {"metrics.jsonl": mutate.lines, "config.yaml": mutate.yaml}
    return [
        Reader(
            name,
            _report(name),
            lambda name=name: (_run_folder()[name],),
            kinds.get(name, mutate.text),
            (ConfigError, LimitExceeded),
            ("report.data.load",),
            0.05,
            reports=True,
        )
        for name in ("summary.json", "metrics.jsonl", "samples.json", "config.yaml")
    ]


# ---- tensors and states ----------------------------------------

_COMPRESSORS = (Exact(), Quantised(8), Quantised(4), TopK(2), LowRank(2), Sketch(2, 3))
_KEY = bytes(16)


@cache
def _tensors() -> tuple[bytes, ...]:
    array = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    return tuple(wire.encode(array, one, _KEY) for one in _COMPRESSORS)


def _masked() -> tuple[bytes, ...]:
    mask = np.ones((2, 3), np.bool_)
    return tuple(data + wire.encode_mask(mask) for data in _tensors())


def _trainer() -> bytes:
    return TrainerState.fresh(6).to_bytes()


def _paces() -> list[Reader]:
    pace, pace_terms = Pace(steps=10, windows=2, mu_ppm=0), PaceTerms()
    fixed, drift = FixedPace(pace), DriftPace(pace_terms, pace, 256)
    ada, qsr = AdaComm(pace_terms, pace), QuadraticSync(pace_terms, pace)
    found = {
        "pace.fixed.FixedPace": fixed,
        "pace.echelon_da.DriftPace": drift,
        "pace.adacomm.AdaComm": ada,
        "pace.qsr.QuadraticSync": qsr,
        "pace.fda.VariancePace": VariancePace(pace_terms, pace),
    }
    return [
        Reader(
            name.rpartition(".")[2],
            core.decode,
            lambda core=core: (core.encode(),),
            _behind_magic,
            (CodecError,),
            (f"{name}.decode",),
            0.5,
        )
        for name, core in found.items()
    ]


def _passphrase(path: Path) -> object:
    path.chmod(0o600)
    return read_passphrase(path)


@cache
def _signed_commits() -> tuple[bytes, ...]:
    kinds = (b"genesis", b"commit")
    return tuple(value for value in seeds.dsse() if _kind(value) in kinds)


@cache
def _controller() -> tuple[bytes, ...]:
    return (scenario().core.snapshot(),)


_CONTROLLER_HEAD = _controller()[0].index(b"\0") + 1


def _controller_resealed(body: bytes) -> object:
    magic = _controller()[0][:_CONTROLLER_HEAD]
    return ControllerCore.restore(terms(), magic + hashlib.sha256(body).digest() + body)


def _behind_magic(random: Any, data: bytes, others: Sequence[bytes]) -> bytes:
    """Msgpack behind a magic that ends with a NUL."""
    at = data.index(b"\0") + 1
    if random.random() < 0.2:
        return mutate.raw(random, data, others)
    return data[:at] + mutate.packed(random, data[at:], [other[at:] for other in others])


def _states() -> list[Reader]:
    limits = wire.Limits(width=8, batch=4, length=16, bytes=1 << 20)
    vector = np.random.default_rng(2).normal(size=12)
    payload, exponent = encode_delta(vector, DeltaCodec.INT16)
    sparse = DeltaForm(DeltaCodec.SPARSE, 12, 500_000)
    sparse_payload, sparse_exponent = sparse.encode(vector)
    basis = np.eye(8, 3, dtype=np.float32)
    outer = OuterState.zeros(OuterKind.NESTEROV, 4, 4)
    state = outer.encode()
    behind = _trainer()[:-32]
    errors = (CodecError, LimitExceeded)
    return [
        Reader(
            "tensor",
            lambda data: wire.decode(data, limits, _KEY),
            _tensors,
            mutate.raw,
            errors,
            (
                "training.split.tensor_format.decode",
                "training.split.compress.Exact.decode",
                "training.split.compress.Bfloat16.decode",
                "training.split.compress.Quantised.decode",
                "training.split.compress.TopK.decode",
                "training.split.compress.LowRank.decode",
                "training.split.compress.Compressor.decode",
                "training.split.sketch.Sketch.decode",
            ),
            0.5,
        ),
        Reader(
            "tensor with its mask",
            lambda data: wire.decode_masked(data, limits),
            cache(_masked),
            mutate.raw,
            errors,
            ("training.split.tensor_format.decode_masked", "training.split.tensor_format.decode_mask"),
            0.5,
        ),
        Reader(
            "subspace",
            lambda data: decode_basis(data, 8),
            lambda: (encode_basis(basis),),
            mutate.raw,
            (CodecError,),
            ("training.split.perturb.decode_basis",),
            0.5,
        ),
        Reader(
            "trainer state",
            lambda data: TrainerState.from_bytes(data, 6),
            lambda: (_trainer(),),
            mutate.raw,
            (StateError,),
            ("training.state.TrainerState.from_bytes",),
        ),
        Reader(
            "trainer state, resealed",
            lambda data: TrainerState.from_bytes(data + hashlib.sha256(data).digest(), 6),
            lambda: (behind,),
            mutate.raw,
            (StateError,),
        ),
        Reader(
            "trainer state with an own part",
            lambda data: TrainerState.from_bytes(data, 6, 2),
            lambda: (TrainerState.fresh(6, 2).to_bytes(),),
            mutate.raw,
            (StateError,),
        ),
        Reader(
            "trainer state with an own part, resealed",
            lambda data: TrainerState.from_bytes(data + hashlib.sha256(data).digest(), 6, 2),
            lambda: (TrainerState.fresh(6, 2).to_bytes()[:-32],),
            mutate.raw,
            (StateError,),
        ),
        Reader(
            "trainer state of a cut",
            lambda data: of_cut(data, (1, 1), 6, lambda p, q: min(p + q, 6)),
            lambda: (with_cut(TrainerState.fresh(6), (1, 1)), with_cut(TrainerState.fresh(2), (2, 0))),
            mutate.raw,
            (StateError,),
        ),
        Reader(
            "delta",
            lambda data: decode_delta(data, exponent, DeltaCodec.INT16),
            lambda: (payload,),
            mutate.raw,
            (CodecError,),
            ("laws.delta_codec.decode",),
        ),
        Reader(
            "sparse delta",
            lambda data: sparse.decode(data, sparse_exponent),
            lambda: (sparse_payload,),
            mutate.raw,
            (CodecError,),
            ("laws.delta_form.DeltaForm.decode",),
        ),
        Reader(
            "outer state",
            outer.decode,
            lambda: (state,),
            mutate.raw,
            (CodecError,),
            ("outer.base.OuterState.decode", "outer.base.OuterOptimiser.decode"),
        ),
        Reader(
            "standing",
            Standing.decode,
            lambda: (Standing().encode(),),
            mutate.packed,
            (CodecError,),
            ("elsa.trust.Standing.decode",),
        ),
        Reader(
            "model shape",
            _shape,
            lambda: (
                _json(
                    {
                        "model_type": "gpt2",
                        "n_embd": 8,
                        "n_head": 2,
                        "n_layer": 2,
                        "n_positions": 9,
                        "vocab_size": 11,
                    }
                ),
                _json(
                    {
                        "model_type": "llama",
                        "hidden_size": 8,
                        "num_attention_heads": 2,
                        "num_hidden_layers": 2,
                        "intermediate_size": 9,
                        "vocab_size": 5,
                    }
                ),
            ),
            mutate.text,
            (ConfigError,),
            ("elsa.shapes.read_shape",),
        ),
        Reader(
            "controller's state",
            lambda data: ControllerCore.restore(terms(), data),
            _controller,
            mutate.raw,
            (StateError,),
            ("rounds.controller.core.ControllerCore.restore",),
            0.3,
        ),
        Reader(
            "controller's state, resealed",
            _controller_resealed,
            lambda: (_controller()[0][_CONTROLLER_HEAD + 32 :],),
            mutate.packed,
            (StateError,),
            share=0.1,
        ),
        Reader(
            "passphrase",
            _file("passphrase", _passphrase),
            lambda: (b"secret\n", b"another secret"),
            mutate.raw,
            (ConfigError,),
            ("passphrase.read_passphrase",),
            0.1,
            reports=True,
        ),
        Reader(
            "signed commit",
            lambda data: open_signed_commit(data, _manifest()),
            _signed_commits,
            mutate.text,
            (ProtocolError,),
            ("laws.versions.open_signed_commit",),
            0.3,
        ),
        *_paces(),
    ]


def _shape(data: bytes) -> object:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None  # transformers reads the file; what it gives is a map
    return read_shape(found) if isinstance(found, dict) else None


@cache
def readers() -> tuple[Reader, ...]:
    """All of them."""
    found = [*_codecs(), *_audit(), *_openings_read(), *_bus(), *_configuration(), *_folders(), *_states()]
    assert len({reader.name for reader in found}) == len(found)
    return tuple(found)


__all__ = ["Reader", "Signer", "load_catalogue", "readers"]
