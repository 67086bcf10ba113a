"""No decoder or reader is left out: whatever is called like one stands in the registry, or here with a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from echelon.errors import CodecError, ProtocolError, StateError
from echelon.laws.rules import RuleRefused
from echelon.messages.stored import stored
from tests.fuzz.readers import readers

PACKAGE = Path(__file__).parents[2] / "echelon"
NAMES = re.compile(
    r"(decode|read|parse|load|loads|open|opened|restore|unpack|from_bytes|from_json|from_files)(_\w+)?"
)
LEFT_OUT = {"sim"}
"""The explorer reads what this project has just written."""

EXEMPT: dict[str, str] = {
    # Names that read nothing from elsewhere.
    "audit.log.TopicLog.open_transfers": "a count",
    "audit.log.TopicLog.open_bytes": "a count",
    "bus.assembler.open_cost": "a count",
    "bus.assembler.Assembler.open_bytes": "a count",
    "bus.spill.Spill.read": "bytes that this process wrote, from a file that no other can open",
    "audit.export.Readable.read": "the interface of an open file",
    "config.run.parse": "takes fields that `load_yaml` has read; `config.run.load` goes through it",
    "audit.boundary_facts.ExchangeFacts.read": "`TopicLog.read`, record by record, of the topics that it needs",
    "sources.boundary.opened_records": "`RecordOpener.open`, record by record",
    "sources.boundary.read_roster": "`read_file`, then `Roster.decode`",
    "run.opening.opened_folder": "makes or holds a folder; of a run that goes on it reads what `run.folder` does",
    "run.data.read_data": "asks learners, which go through `read_source`",
    "preflight.data.Reading.read": "documents that `documents_of` gives",
    "api.result.RunResult.read": "`report.data.load`, `config.run.load`, and a source's `opened`, each by itself",
    "api.result.RunResult.load": "a model folder, read by transformers and PEFT",
    "cli.parents.load_parent": "an audit's `Verifier`, or `read_weights` and a JSON map; tests/cli/test_warm_start.py",
    "passphrase.read_optional": "`read_passphrase`, where a file is named",
    "laws.versions.KnownVersions.read": "`open_signed_commit`, then what it has read before",
    "training.layout.FlatAdapter.load": "copies a vector into tensors",
    "training.layout.FlatAdapter.read": "copies tensors into a vector",
    "training.layout.FlatAdapter.read_personal": "copies tensors into a vector",
    "run.personal.OwnPart.read": "a device's snapshot, then `TrainerState.from_bytes`; tests/run/test_personal.py",
    "actors.device.ShardSource.read": "notes a position",
    "wiring.shards.FixedShards.read": "notes a position",
    "wiring.shards.KafkaShards.read": "notes a position",
    "training.data.examples.BlockExamples.read": "counts tokens of chosen rows",
    "training.data.examples.Examples.read": "counts tokens of chosen rows",
    "training.data.examples.RowExamples.read": "counts tokens of chosen rows",
    "config.reading.open_regular": "opens a file; every file reader here goes through it",
    "config.reading.read_file": "bytes of a file; every file reader here goes through it",
    "config.reading.read_text": "text of a file; `load_probes` goes through it",
    # Interfaces, of which every implementation is registered or stands here.
    "bus.store.Store.read": "interface; see SqliteStore",
    "bus.store.MemoryStore.read": "records that this process has written",
    "bus.embedded.EmbeddedBus.read": "passes on what its store reads",
    "pace.base.PaceController.decode": "interface",
    "outer.base.Outer.decode": "interface",
    # Records of a bus: what stands in them goes through the codecs, which are registered.
    "actors.boundary.BoundaryActor.open": "Envelope.open and Message.decode; see tests/actors/test_garbage.py",
    "actors.device.Device.open": "`BoundaryActor.open`, then passes over what is sealed to others",
    "services.key_changes.read_changes": "`read_file`, then `StatementFile.decode`, file by file",
    "actors.edge.Edge.open": "Envelope.open and Message.decode",
    "actors.runtime.read_to_end": "gives records as the bus does",
    "rounds.device.split_session.DeviceSession.open": "asks for a session",
    "laws.channel.Channel.open": "AES-GCM, then decode_frame",
    "provision.kafka.live.read": "asks a broker's administration",
    "bus.open_bus": "a URL; tests/bus/test_sqlite.py and test_kafka_url.py have what it refuses",
    "bus.kafka_url.open_kafka": "a URL; see tests/bus/test_kafka_url.py",
    "sources.exchange.opened": "tests/audit/test_hostile_sources.py; its parts are registered",
    # Sums and tensors whose length and width the caller has checked: any bytes of that length are valid.
    "laws.snapshot.decode": "msgspec, with the struct of a state machine; its `restore` goes through it",
    "laws.cohort.read_part": "integers of a length that it checks; see tests/rounds/edge/test_window_sum.py",
    "secagg.keys.open_shares": "AES-GCM, which gives None for anything else",
    "secagg.ring.Codec.decode_sum": "arithmetic of a sum",
    "secagg.ring.unpack_sum": "takes a sum apart",
    "training.split.link.TensorCodec.unpack": "wire.decode",
    "training.split.link.TensorCodec.unpack_masked": "wire.decode_masked",
    "training.split.tensor_format.restore": "the compressor that a header names; wire.decode goes through it",
    # An actor's own state, which its actor reads inside of `messages.stored`.
    **dict.fromkeys(
        (
            "audit.signers.Signers.restore",
            "laws.versions.KnownVersions.restore",
            "rounds.aggregator.core.AggregatorCore.restore",
            "rounds.aggregator.attendance.Attendance.restore",
            "rounds.gate.derivation.BoundaryLog.restore",
            "rounds.aggregator.recovery.HistoryReader.restore",
            "rounds.device.core.DeviceCore.restore",
            "rounds.edge.core.EdgeCore.restore",
            "rounds.aggregator.edge_assignment.Edges.restore",
            "rounds.aggregator.trust_standings.TrustStandings.restore",
        ),
        "stored state, read inside of `messages.stored`, which is tested below",
    ),
    **dict.fromkeys(
        (
            "outer.alternating.Alternating.decode",
            "outer.custom.Custom.decode",
            "pace.custom.CustomPace.decode",
        ),
        "parts of the controller's stored state: ControllerCore.restore goes through them",
    ),
    # Files that are made of files which are registered.
    "provision.deployment.Deployment.load": "a folder of registered files",
    "provision.identities.Identities.load": "a folder of keys and rosters",
    "provision.pki.Authority.load": "PEM files, by `read_file` and the cryptography package",
    "wiring.plugins.read_rule": "the source of a rule that the user has named, pinned by its digest",
    "services.agreed.read_agreed": "the pinned manifest and the run file",
    "services.agreed.read_initial": "float32 of the manifest's length",
    "services.agreed.read_roster": "the roster, verified",
    "services.role.load_split": "makes a model",
    # Models and corpora: transformers and datasets read them, and the project catches what those raise.
    **dict.fromkeys(
        (
            "training.model.load_base",
            "training.model.load_pretrained",
            "training.model.load_tokenizer",
            "training.model.read_config",
            "training.split.segment.load_side",
        ),
        "a model folder, read by transformers",
    ),
    **dict.fromkeys(
        (
            "training.tasks.base.Task.load",
            "training.tasks.base.Task.load_whole",
            "training.tasks.classification.Classification.load",
            "training.tasks.classification.Classification.load_whole",
            "training.tasks.language_modelling.LanguageModelling.load",
        ),
        "encodes documents that `read_source` gives",
    ),
    "training.data.boundary.load_boundary": "encodes documents that `read_source` gives",
    "training.data.boundary.load_rows": "encodes documents that `read_source` gives",
}
"""What needs no reader of its own, and why."""

NOT_NAMED_LIKE_ONE = {
    "audit.verify.verify",
    "messages.adapter.vector_from_files",
    "messages.frames.from_double",
    "sim.schedule.load",
}
"""Registered although their name, or their package, would not demand it."""


def public() -> Iterator[str]:
    """Public functions and methods of public classes whose name is a reader's, as `module.qualname`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").parts
        if module[0] not in LEFT_OUT:
            for name in _named(ast.parse(path.read_text("utf-8")).body, ()):
                yield ".".join(part for part in (*module, *name) if part != "__init__")


def _named(body: list[ast.stmt], inside: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _named(node.body, (*inside, node.name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and NAMES.fullmatch(node.name):
            yield (*inside, node.name)


@pytest.mark.slow
def test_every_reader_is_in_the_registry_or_has_a_reason() -> None:
    found, covered = set(public()), {name for reader in readers() for name in reader.covers}
    assert len(found) > 60
    assert sorted(found - covered - EXEMPT.keys()) == [], "give it a Reader in tests/fuzz/readers.py"
    assert sorted(EXEMPT.keys() - found) == [], "a reason for what is no more"
    assert sorted(covered & EXEMPT.keys()) == []
    assert covered - found == NOT_NAMED_LIKE_ONE


def test_every_message_of_every_plane_has_a_reader() -> None:
    from echelon.messages.boundary import BOUNDARY
    from echelon.messages.exchange import EXCHANGE
    from echelon.messages.frames import FRAMES

    names = {reader.name for reader in readers()}
    planes = {"boundary": BOUNDARY, "exchange": EXCHANGE, "frame": FRAMES}
    assert {f"{plane}.{kind.kind}" for plane, registry in planes.items() for kind in registry} <= names


@pytest.mark.parametrize(
    "raised",
    [
        ValueError("x"),
        TypeError("x"),
        KeyError("x"),
        IndexError("x"),
        AttributeError("x"),
        OverflowError("x"),
        RecursionError("x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
        msgpack.StackError(),
        msgpack.OutOfData(),
        CodecError("x"),
        ProtocolError("x"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_stored_state_that_does_not_fit_ends_with_a_sentence(raised: Exception) -> None:
    with pytest.raises(StateError, match=r"^the state cannot be read .* Move it away"), stored("the state"):
        raise raised


def test_what_is_no_fault_of_stored_state_passes_as_it_is() -> None:
    for other in (MemoryError(), KeyboardInterrupt(), StateError("of another run"), RuleRefused("x")):
        with pytest.raises(type(other)) as found, stored("the state"):
            raise other
        assert found.value is other
