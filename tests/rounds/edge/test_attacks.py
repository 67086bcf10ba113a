"""An aggregator that wants one device's middle from its edge, with all of its own keys and no colluder.

Each test takes the records of one honest window, changes what the aggregator may change, and shows them to the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.cohort import context_of, offers_sha256, one_base
from echelon.messages.adapter import AdapterLayout
from echelon.messages.boundary import Base, Cohort, Derived, Void, VoidReason
from echelon.messages.boundary import Phase as WindowPhase
from echelon.messages.handshake import Included, KeyList, SharesList, SignatureEntry, Signatures
from echelon.messages.split import EdgePart
from echelon.messages.wire import Message
from echelon.rounds.effects import Incoming, Publish
from echelon.secagg.context import consistency_statement
from tests.worlds.boundary_world import AGGREGATOR, DIM, signer_of
from tests.worlds.split_world import SplitWorld, split_manifest

MINE = ("d0", "d2", "d4")
"""Devices of edge e0."""
WINDOW = (Cohort, KeyList, SharesList, Included, Signatures)


class Scene:
    """Edge e0 just before a window, and the records of that window as they stand on `control`."""

    def __init__(self, **terms: Any) -> None:
        self.world = SplitWorld(**terms)
        self.world.genesis()
        self.world.pump()
        self.world.train()
        before = self.world.edge("e0")
        facts, vectors = before.facts(), before.vectors()
        self.world.pump()
        self.edge = self.world.new_edge("e0")
        self.edge.restore(facts, vectors)
        self.payloads: list[np.ndarray] = []
        self.records: list[Message] = [
            line.message
            for line in self.world.log
            if isinstance(line.message, WINDOW) and line.message.window == 0
        ]

    @property
    def cohort(self) -> Cohort:
        return self.get(Cohort)

    def get(self, kind: type[Any]) -> Any:
        return next(record for record in self.records if isinstance(record, kind))

    def change(self, kind: type[Any], **fields: Any) -> None:
        self.records = [
            record.model_copy(update=fields) if isinstance(record, kind) else record
            for record in self.records
        ]

    def member(self, device: str, **fields: Any) -> None:
        """What the cohort says of a member, changed."""
        members = tuple(
            one.model_copy(update=fields) if one.device == device else one for one in self.cohort.members
        )
        self.change(Cohort, members=members)

    def give(self, message: Message, window: int = 0) -> list[EdgePart]:
        """Show the edge a record; the parts that it publishes."""
        topic, sender = ("versions", "ward.gate") if isinstance(message, Derived) else ("control", AGGREGATOR)
        effects = self.edge.handle(Incoming(topic, 0, sender, window, message))
        found = [effect for effect in effects if isinstance(effect, Publish) and effect.topic == "parts"]
        self.payloads += [np.frombuffer(effect.payload or b"", "<i4") for effect in found]
        return [effect.message for effect in found if isinstance(effect.message, EdgePart)]

    def show(self, records: Sequence[Message] | None = None) -> list[EdgePart]:
        """Show the edge the window; a record that it refuses must have changed nothing."""
        parts = []
        for record in self.records if records is None else records:
            before = self.edge.facts(), self.edge.vectors()
            try:
                parts += self.give(record)
            except ProtocolError:
                assert (self.edge.facts(), self.edge.vectors()) == before
        return parts


def test_an_honest_window_releases_the_part() -> None:
    (part,) = Scene().show()
    assert part.devices == MINE


def without(scene: Scene, kind: type[Any], *devices: str) -> None:
    entries = tuple(entry for entry in scene.get(kind).entries if entry.device not in devices)
    scene.change(kind, entries=entries)


def unsigned(scene: Scene) -> None:
    scene.change(Signatures, entries=())


def too_few(scene: Scene) -> None:
    entries = scene.get(Signatures).entries
    threshold = scene.cohort.threshold
    scene.change(Signatures, entries=entries[: threshold - 1])


def of_another(scene: Scene) -> None:
    """The signatures are right and stand under other names."""
    entries = scene.get(Signatures).entries
    signatures = [entry.signature for entry in entries]
    moved = [*signatures[1:], signatures[0]]
    scene.change(
        Signatures,
        entries=tuple(
            entry.model_copy(update={"signature": signature})
            for entry, signature in zip(entries, moved, strict=True)
        ),
    )


def by_a_stranger(scene: Scene) -> None:
    """The aggregator signs in the place of the devices."""
    forged = signer_of("aggregator").sign(b"anything")
    entries = scene.get(Signatures).entries
    scene.change(
        Signatures, entries=tuple(entry.model_copy(update={"signature": forged}) for entry in entries)
    )


def smaller_set(scene: Scene) -> None:
    """The set that the devices signed is another one than the edge is shown."""
    without(scene, Included, "d1")
    without(scene, Signatures, "d1")


def other_keys(scene: Scene) -> None:
    entries = scene.get(KeyList).entries
    first = entries[0].model_copy(update={"mask_public": bytes(32)})
    scene.change(KeyList, entries=(first, *entries[1:]))


def other_shares(scene: Scene) -> None:
    scene.change(SharesList, devices=scene.get(SharesList).devices[1:])


def more_tokens(scene: Scene) -> None:
    (member,) = [one for one in scene.cohort.members if one.device == "d0"]
    n = member.n - 1 or 2
    secure = scene.world.manifest.secure
    scene.member("d0", n=n, weight=secure.weight(n, 0))


def other_job(scene: Scene) -> None:
    """The victim's middle of another job than the one that it offered."""
    kept = scene.edge.kept["d0"]
    (job,) = kept.moved
    kept.moved[job + 1], kept.bases[job + 1] = kept.moved[job], kept.bases[job]
    scene.member("d0", jobs=(job + 1,))


def other_offer(scene: Scene) -> None:
    scene.member("d0", offer=99)


def other_edge(scene: Scene) -> None:
    """A device of e1 is said to be e0's, so that the rest hides behind fewer."""
    scene.member("d1", edge="e0")


def other_bases(scene: Scene) -> None:
    scene.change(
        Cohort,
        bases=tuple(Base(version=base.version, sha256=bytes(32)) for base in scene.cohort.bases),
    )


def other_version(scene: Scene) -> None:
    """The rest of the edge's devices are said to have trained from a version before."""
    bases = (*scene.cohort.bases, Base(version=scene.cohort.version + 7, sha256=bytes(32)))
    scene.change(Cohort, bases=bases)


FORGERIES: tuple[Callable[[Scene], None], ...] = (
    unsigned, too_few, of_another, by_a_stranger, smaller_set, other_keys, other_shares, more_tokens, other_job,
    other_offer, other_edge, other_bases, other_version,
)  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_what_the_devices_did_not_sign_releases_nothing(forge: Callable[[Scene], None]) -> None:
    scene = Scene()
    forge(scene)
    assert scene.show() == []


def test_a_device_that_did_not_sign_its_offer_is_in_no_part_whoever_else_signs() -> None:
    """Everybody else signs a set under a key list in which the victim's signature is none."""
    scene = Scene()
    keys = scene.get(KeyList)
    scene.change(
        KeyList,
        entries=tuple(
            entry.model_copy(update={"signature": bytes(64)}) if entry.device == "d0" else entry
            for entry in keys.entries
        ),
    )
    context = context_of(scene.cohort, scene.world.manifest, DIM)
    statement = consistency_statement(
        context.bound(scene.get(KeyList)), scene.get(SharesList), scene.get(Included)
    )
    others = [device for device in scene.world.names if device != "d0"]
    scene.change(
        Signatures,
        entries=tuple(
            SignatureEntry(device=device, signature=signer_of(device).sign(statement)) for device in others
        ),
    )
    assert scene.show() == []
    assert scene.edge._window == 1  # the set was signed by enough; the victim's middle was left out


@pytest.mark.parametrize("missing", WINDOW, ids=lambda kind: kind.kind)
def test_a_window_with_a_decision_left_out_releases_nothing(missing: type[Message]) -> None:
    scene = Scene()
    assert scene.show([record for record in scene.records if not isinstance(record, missing)]) == []


@pytest.mark.parametrize("first", [KeyList, SharesList, Included, Signatures], ids=lambda kind: kind.kind)
def test_a_decision_before_its_turn_is_refused(first: type[Message]) -> None:
    scene = Scene()
    with pytest.raises(ProtocolError, match="no cohort"):
        scene.give(scene.get(first))
    scene.give(scene.cohort)
    if first is not KeyList:
        with pytest.raises(ProtocolError, match="before the"):
            scene.give(scene.get(first))
    (part,) = scene.show()
    assert part.devices == MINE


def test_a_second_cohort_of_a_window_is_refused_and_the_first_one_goes_on() -> None:
    scene = Scene()
    scene.give(scene.cohort)
    other = scene.cohort.model_copy(update={"inputs": 77})
    with pytest.raises(ProtocolError, match="two cohorts"):
        scene.give(other)
    (part,) = scene.show()
    assert part.devices == MINE


@pytest.mark.parametrize("kind", [KeyList, SharesList, Included], ids=lambda kind: kind.kind)
def test_a_second_decision_of_a_kind_is_refused_and_the_first_one_goes_on(kind: type[Any]) -> None:
    scene = Scene()
    at = next(place for place, record in enumerate(scene.records) if isinstance(record, kind))
    scene.show(scene.records[: at + 1])
    decision: Any = scene.records[at]
    names = "devices" if kind is SharesList else "entries"
    with pytest.raises(ProtocolError, match="two different"):
        scene.give(decision.model_copy(update={names: getattr(decision, names)[1:]}))
    (part,) = scene.show()
    assert part.devices == MINE


def test_a_window_is_answered_once_whatever_is_shown_again() -> None:
    scene = Scene()
    assert len(scene.show()) == 1
    assert scene.show() == []
    scene.give(Void(window=0, phase=WindowPhase.UNMASK, reason=VoidReason.THRESHOLD))
    assert scene.show() == []


def test_the_number_of_a_window_that_is_over_is_not_used_again() -> None:
    scene = Scene()
    scene.give(Void(window=0, phase=WindowPhase.OPEN, reason=VoidReason.THRESHOLD))
    assert scene.show() == []
    assert all(kept.moved for kept in scene.edge.kept.values())


def test_a_middle_that_was_trained_from_another_adapter_is_left_out() -> None:
    """Two of three devices trained from zeros: the sum of their middles and the victim's is the victim's."""
    scene = Scene()
    for device in ("d0", "d2"):
        kept = scene.edge.kept[device]
        kept.bases = {job: (version, bytes(32)) for job, (version, _) in kept.bases.items()}
    assert scene.show() == []
    assert not any(kept.moved for kept in scene.edge.kept.values())  # and it is in no later part


def test_a_middle_of_another_version_is_left_out() -> None:
    scene = Scene(devices=8, manifest=split_manifest(staleness=(256, 256, 256)))
    kept = scene.edge.kept["d0"]
    kept.bases = {job: (version + 1, digest) for job, (version, digest) in kept.bases.items()}
    (part,) = scene.show()
    assert part.devices == ("d2", "d4", "d6")


def test_nothing_counts_that_was_trained_from_what_the_gate_did_not_derive() -> None:
    scene = Scene()
    scene.edge._derived.clear()
    assert scene.show() == []  # it waits for the gate's word
    digest = scene.cohort.bases[0].sha256
    assert scene.give(Derived(version=0, commit=0, sha256=bytes(32), window=0)) == []
    with pytest.raises(ProtocolError, match="two digests"):
        scene.give(Derived(version=0, commit=0, sha256=digest, window=0))
    assert not any(kept.moved for kept in scene.edge.kept.values())


def test_a_part_waits_for_the_gate_s_word_on_its_version() -> None:
    scene = Scene()
    scene.edge._derived.clear()
    assert scene.show() == []
    digest = scene.cohort.bases[0].sha256
    (part,) = scene.give(Derived(version=0, commit=0, sha256=digest, window=0))
    assert part.devices == MINE


@pytest.mark.parametrize("read", range(6))
def test_an_edge_that_is_started_again_in_a_window_goes_on_with_what_it_had_verified(read: int) -> None:
    scene = Scene()
    parts = scene.show(scene.records[:read])
    again = scene.world.new_edge("e0")
    again.restore(scene.edge.facts(), scene.edge.vectors())
    scene.edge = again
    (part,) = parts + scene.show()
    assert part.devices == MINE


def test_one_base_is_the_version_that_most_trained_from_and_of_equals_the_older() -> None:
    secure = split_manifest().secure
    (member, *_) = Scene().cohort.members

    def members(*bases: int) -> list[Any]:
        return [
            member.model_copy(update={"device": f"d{place}", "base_version": base})
            for place, base in enumerate(bases)
        ]

    def chosen(*bases: int) -> list[int]:
        return [one.base_version for one in one_base(members(*bases), secure)]

    assert chosen(5, 4, 5, 5) == [5, 5, 5]
    assert chosen(5, 4, 5, 4) == []
    assert chosen(5, 4, 5, 4, 4, 5) == [4, 4, 4]
    assert chosen() == []


def test_what_a_device_offers_is_in_what_it_signs() -> None:
    """Each field of a member changes the context that every device signs with its keys."""
    scene = Scene()
    cohort = scene.cohort
    context = context_of(cohort, scene.world.manifest, DIM)
    assert context.offers_sha256 == offers_sha256(cohort)
    assert replace(context, offers_sha256=bytes(32)).digest != context.digest
    seen = {offers_sha256(cohort)}
    for fields in ({"offer": 99}, {"jobs": (7, 8)}, {"edge": "e1"}, {"shards": (1,)}):
        scene.records = [cohort]
        scene.member("d0", **fields)
        seen.add(offers_sha256(scene.cohort))
    assert len(seen) == 5


def test_a_middle_that_is_no_number_stops_no_window() -> None:
    scene = Scene(devices=8)
    kept = scene.edge.kept["d0"]
    kept.moved = {job: np.full(DIM, np.inf, np.float32) for job in kept.moved}
    (part,) = scene.show()
    assert part.devices == ("d2", "d4", "d6")


@pytest.mark.parametrize(("others", "hidden"), [(0, True), (1, True), (2, False)])
def test_a_block_that_too_few_leave_to_the_edge_is_not_in_the_part(others: int, hidden: bool) -> None:
    """Devices that are cut elsewhere leave other blocks: alone with a block, a device would stand in the clear."""
    layout = AdapterLayout.of({f"layer.{block}.lora_A.weight": (1, 2) for block in range(4)})
    manifest = split_manifest().model_copy(update={"layout": layout.json.decode()})
    scene = Scene(manifest=manifest)
    for device in MINE[1 + others :]:
        kept = scene.edge.kept[device]
        kept.moved = {job: np.where(np.arange(DIM) // 2 == 1, 0, moved) for job, moved in kept.moved.items()}
    (part,) = scene.show()
    (total,) = scene.payloads
    assert part.devices == MINE
    assert total[4:6].all()
    assert bool(total[2:4].any()) is not hidden
