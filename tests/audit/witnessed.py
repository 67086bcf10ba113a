"""What witnesses make of a synthetic exchange: heads that its writers announced, and cosignatures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echelon.audit.heads import (
    COSIGNATURE,
    HEAD,
    HEAD_PREFIX,
    LAST,
    ORDINARY,
    WITNESS_PREFIX,
    Head,
    headers_of,
    key_name,
    logs_of,
    watched_by,
)
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint, SignedNote
from echelon.audit.records import StoredRecord, is_chunk
from echelon.audit.witness import WitnessCore
from echelon.messages.envelope import Signer
from echelon.messages.manifest import RunManifest, WitnessTerms
from tests.audit.synthetic import CONTROLLER, GATES, Exchange, scenario, terms

NAMES = ("a", "b", "w")
"""Both gates, and one that is none."""
WITNESSES = {name: Signer(bytes([100 + place]) * 32) for place, name in enumerate(NAMES)}


def watched_terms(names: Sequence[str] = NAMES, **fields: object) -> RunManifest:
    """The terms of a run with these witnesses."""
    listed = tuple(WitnessTerms(name=name, public=WITNESSES[name].public.hex()) for name in names)
    return RunManifest(**{**terms(**fields).model_dump(), "witnesses": listed})  # type: ignore[arg-type]


def watched_scenario(names: Sequence[str] = NAMES) -> Exchange:
    """`scenario` of a run with witnesses."""
    return scenario(manifest=watched_terms(names))


def tree_of(records: Sequence[StoredRecord]) -> Tree:
    """The log of a topic, of records that are all as they should be."""
    tree = Tree()
    for record in records:
        if not is_chunk(record):
            tree.append_hash(leaf_hash(record.value))
    return tree


def signer_of(topic: str) -> Signer:
    return CONTROLLER if topic == "global" else GATES[ord(topic[-1]) - ord("a")]


def note_of(manifest: RunManifest, topic: str, tree: Tree, size: int) -> SignedNote:
    """A checkpoint that the log's writer signed."""
    origin = logs_of(manifest)[topic].origin
    return Checkpoint(origin, size, tree.root(size)).sign(origin, signer_of(topic))


@dataclass
class Watching:
    """Heads and cosignatures of an exchange as they grow; `topics` has all of it."""

    exchange: Exchange
    times: int = 1_000
    heads: dict[str, list[StoredRecord]] = field(default_factory=dict)
    cosigned: dict[str, list[StoredRecord]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        manifest = self.exchange.manifest
        self.trees = {topic: tree_of(records) for topic, records in self.exchange.topics.items()}
        self.announced = dict.fromkeys(self.trees, 0)
        self.cores = {
            one.name: WitnessCore(
                key_name(manifest, one.name), WITNESSES[one.name], watched_by(manifest, one.name)
            )
            for one in manifest.witnesses
        }
        self.heads = {HEAD_PREFIX + topic: [] for topic in self.trees}
        self.cosigned = {WITNESS_PREFIX + name: [] for name in self.cores}

    def announce(self, topic: str, size: int) -> None:
        """The writer announces the first `size` manifests; every witness that watches the log reads that."""
        old, tree = self.announced[topic], self.trees[topic]
        proof = tuple(tree.consistency(old, size)) if old else ()
        head = Head(old, proof, note_of(self.exchange.manifest, topic, tree, size)).encode()
        self.announced[topic] = size
        log = self.heads[HEAD_PREFIX + topic]
        key = LAST if topic == "global" and size == len(tree) else ORDINARY
        log.append(StoredRecord(HEAD_PREFIX + topic, len(log), key, head, headers_of(HEAD)))
        for core in self.cores.values():
            if any(one.topic == topic for one in core.logs):
                assert core.take(topic, head) is None

    def round(self, name: str) -> None:
        """A witness cosigns what it knows."""
        self.times += 5
        for topic, note in self.cores[name].round(self.times):
            self.write(name, topic, note)

    def write(self, name: str, topic: str, note: SignedNote) -> None:
        """A record of a witness, whatever it says."""
        log = self.cosigned[WITNESS_PREFIX + name]
        log.append(
            StoredRecord(
                WITNESS_PREFIX + name, len(log), topic.encode(), note.encode(), headers_of(COSIGNATURE)
            )
        )

    def everything(self) -> Watching:
        """All logs are announced to their ends, and every witness cosigns them."""
        for topic in sorted(self.trees):
            self.announce(topic, len(self.trees[topic]))
        for name in self.cores:
            self.round(name)
        return self

    @property
    def topics(self) -> dict[str, list[StoredRecord]]:
        found: Mapping[str, list[StoredRecord]] = {
            **self.exchange.topics,
            **self.heads,
            **self.cosigned,
        }
        return {topic: list(records) for topic, records in found.items()}
