"""Operator and brokers over the exchange's logs: exchanged terms, and records that are moved, dropped or added."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from echelon.audit.merkle import Frontier
from echelon.audit.note import Checkpoint, origin
from echelon.audit.records import StoredRecord, manifest_record, read_manifest
from echelon.messages.adapter import adapter_files
from echelon.messages.envelope import Signer
from echelon.messages.manifest import RunManifest
from tests.adversary.case import Cases, Noticed, Played
from tests.adversary.rewriting import Rewriting, Topics, plan_of, resigned, rewritten
from tests.adversary.seasons import (
    AUDIT,
    again,
    audit,
    heavier,
    honest,
    noticed,
    on_commit,
    season,
)
from tests.audit.synthetic import CONTROLLER, GATES, OPERATOR, Exchange, renumbered
from tests.audit.test_cli import invoke, write_run
from tests.audit.test_incremental import again as verified
from tests.audit.test_incremental import stored

CASES = Cases("log")


# ---- the operator ----------------------------------------------------------------------------------


def other_terms() -> RunManifest:
    """The run's terms with a floor of one device less."""
    manifest = season().manifest
    return manifest.model_copy(update={"secure": manifest.secure.model_copy(update={"k_min": 2})})


def exchanged(controller: Signer) -> Topics:
    """The run's logs behind a genesis with other terms, signed by this controller."""
    other = Exchange(other_terms())
    if controller is not CONTROLLER:
        other.main.signer = controller
        record = other.main.records.pop()
        other.main.number, other.main.tree = 0, type(other.main.tree)()
        from echelon.audit.records import read_manifest

        other.main.manifest(read_manifest(record)[1])
    topics = honest()
    return {**topics, "global": [*other.topics["global"], *renumbered(topics["global"])[2:]]}


def manifest_under_genesis() -> Played:
    """The terms' envelope alone is exchanged, in the bytes that genesis describes."""
    topics = honest()
    other = Exchange(other_terms())
    return audit({**topics, "global": [other.topics["global"][0], *topics["global"][1:]]})


def rewritten_under(topics: Topics) -> Topics:
    exchange = Rewriting(topics, CONTROLLER)
    plan = plan_of(honest())
    for reading in plan.commits:
        exchange.read(reading.sizes)
        if exchange.core.pending:
            exchange.commit(reading.measured)
    exchange.read(plan.end)
    exchange.close()
    return exchange.topics


CASES.add(
    "operator",
    "exchanged manifest",
    "puts other terms where genesis has the run's",
    manifest_under_genesis,
    by=AUDIT,
    finding="genesis",
    record="global@1",
)
CASES.add(
    "operator",
    "exchanged manifest",
    "signs other terms with a genesis of its own key",
    lambda: audit(exchanged(OPERATOR)),
    by=AUDIT,
    finding="genesis",
    record="global",
)
CASES.add(
    "controller + operator",
    "exchanged manifest",
    "write a genesis with other terms before the run's log",
    lambda: audit(exchanged(CONTROLLER)),
    by=AUDIT,
    finding="genesis",
    record="global@1",
)
CASES.add(
    "controller + operator",
    "exchanged manifest",
    "write a genesis with other terms, and all of `global` anew",
    lambda: audit(rewritten_under(exchanged(CONTROLLER))),
    by=AUDIT,
    finding="interlock",
    record="delta.a@1 against global@1",
)


# ---- brokers ---------------------------------------------------------------------------------------


def moved(topic: str, change: Callable[[list[StoredRecord]], list[StoredRecord]]) -> Callable[[], Played]:
    """The broker shows other records of a topic; it numbers them anew."""

    def play() -> Played:
        topics = honest()
        topics[topic] = renumbered(change(list(topics[topic])))
        return audit(topics, same=True)

    return play


def _without(place: int) -> Callable[[list[StoredRecord]], list[StoredRecord]]:
    return lambda records: [*records[:place], *records[place + 1 :]]


def _swapped(one: int, other: int) -> Callable[[list[StoredRecord]], list[StoredRecord]]:
    def change(records: list[StoredRecord]) -> list[StoredRecord]:
        records[one], records[other] = records[other], records[one]
        return records

    return change


def _put(place: int, value: bytes) -> Callable[[list[StoredRecord]], list[StoredRecord]]:
    return lambda records: [
        *records[:place],
        StoredRecord(records[0].topic, 0, b"", value, (("kind", b"delta"),)),
        *records[place:],
    ]


OTHER_RUN = bytes(range(16, 32))


def of_another_run(topic: str, signer: Signer) -> Callable[[], Played]:
    """Who has the writer's name in another run on the same broker, and so its rights here, writes as in its own run."""

    def change(records: list[StoredRecord]) -> list[StoredRecord]:
        manifests = [one for one in records if one.headers[0] != ("kind", b"chunk")]
        message = read_manifest(manifests[-1])[1].model_copy(update={"run": OTHER_RUN})
        key, headers, value = manifest_record(signer, message, OTHER_RUN)
        return [*records[:4], StoredRecord(topic, 0, key, value, headers), *records[4:]]

    return moved(topic, change)


for who, topic in (("controller", "global"), ("gate", "delta.a")):
    for does, signer in (
        (f"of another run, with its own key there, writes on {topic} of this one", Signer(b"\x45" * 32)),
        (
            f"of two runs, with one key in both, writes a record of the other one on {topic}",
            CONTROLLER if who == "controller" else GATES[0],
        ),
    ):
        CASES.add(
            who,
            "inserted record",
            does,
            of_another_run(topic, signer),
            by=AUDIT,
            finding="wrong-run" if "two runs" in does else "bad-signature",
            record=f"{topic}@4",
        )


def _flipped(place: int) -> Callable[[list[StoredRecord]], list[StoredRecord]]:
    def change(records: list[StoredRecord]) -> list[StoredRecord]:
        value = records[place].value
        records[place] = replace(records[place], value=bytes([value[0] ^ 1]) + value[1:])
        return records

    return change


BROKER: tuple[
    tuple[str, str, Callable[[list[StoredRecord]], list[StoredRecord]], dict[str, tuple[str, str]]], ...
] = (
    (
        "dropped record",
        "drops a manifest",
        _without(3),
        {"global": ("gap", "global@4"), "delta.a": ("gap", "delta.a@4")},
    ),
    (
        "dropped record",
        "drops a chunk",
        _without(4),
        {"global": ("payload", "global@4"), "delta.a": ("payload", "delta.a@4")},
    ),
    (
        "dropped record",
        "drops the end",
        lambda records: records[:-1],
        {"global": ("open", "global"), "delta.a": ("missing", "delta.a@8")},
    ),
    (
        "reordered records",
        "swaps two manifests",
        _swapped(3, 5),
        {"global": ("payload", "global@3"), "delta.a": ("payload", "delta.a@3")},
    ),
    (
        "reordered records",
        "puts a manifest before its chunk",
        _swapped(4, 5),
        {"global": ("payload", "global@4"), "delta.a": ("payload", "delta.a@4")},
    ),
    (
        "duplicated record",
        "delivers a record twice",
        lambda records: [*records[:6], records[5], *records[6:]],
        {"global": ("repeat", "global@6"), "delta.a": ("repeat", "delta.a@6")},
    ),
    (
        "inserted record",
        "writes a record of its own",
        _put(4, b"nobody's"),
        {"global": ("malformed", "global@4"), "delta.a": ("malformed", "delta.a@4")},
    ),
    (
        "chunk spoofing",
        "changes a byte of a chunk",
        _flipped(4),
        {"global": ("corrupt-chunk", "global@4"), "delta.a": ("corrupt-chunk", "delta.a@4")},
    ),
    (
        "unsigned or forged record",
        "changes a byte of a manifest",
        _flipped(5),
        {"global": ("malformed", "global@5"), "delta.a": ("malformed", "delta.a@5")},
    ),
)
for kind, does, move, found_at in BROKER:
    for topic, (finding, record) in found_at.items():
        CASES.add(
            "broker", kind, f"{does} of {topic}", moved(topic, move), by=AUDIT, finding=finding, record=record
        )


def undeclared(topic: str) -> Callable[[], Played]:
    return lambda: audit({**honest(), topic: [StoredRecord(topic, 0, b"", b"x", ())]})


for topic in ("delta.z", "adapter", "global.old"):
    CASES.add(
        "broker",
        "undeclared topic",
        f"keeps records on a topic `{topic}`",
        undeclared(topic),
        by=AUDIT,
        finding="unexpected-topic",
        record=f"{topic}@0",
    )


def missing_topic() -> Played:
    topics = honest()
    del topics["delta.b"]
    return audit(topics)


CASES.add(
    "broker",
    "dropped record",
    "keeps the whole of delta.b back",
    missing_topic,
    by=AUDIT,
    finding="missing",
    record="delta.b",
)
CASES.add(
    "broker",
    "dropped record",
    "shows an auditor, who takes an open run, all logs as they were at commit 3",
    lambda: audit({t: r[: 8 if t == "global" else 6] for t, r in honest().items()}, allow_open=True),
    by=AUDIT,
    finding="open",
    record="global",
    but="what is cut off is not known; a checkpoint, a cosignature or an earlier verification shows it",
)


def exported(change: Callable[[dict[str, bytes]], None]) -> Callable[[], Played]:
    """The exported adapter's folder holds something else."""

    def play() -> Played:
        exchange = season()
        manifest = exchange.manifest
        files = adapter_files(
            manifest.adapter_layout(), manifest.adapter_config.encode(), exchange.core.adapter
        )
        change(files)
        return audit(exchange.topics, pinned=exchange.genesis_sha256, adapter=files)

    return play


def beside() -> Played:
    """A run folder with a file more where the adapter is, as the command reads it."""
    exchange = season()
    with TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", exchange)
        (run / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
        result = invoke("verify", run, "--json")
    found = [one for one in json.loads(result.output)["findings"] if one["severity"] == "error"]
    return Played(tuple(Noticed(AUDIT, one["code"], one["detail"]) for one in found), result.exit_code == 0)


def _spoil(files: dict[str, bytes]) -> None:
    name = max(files, key=lambda one: len(files[one]))
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])


for who in ("broker", "operator"):
    CASES.add(
        who,
        "adapter-folder addition",
        "changes a byte of the exported adapter",
        exported(_spoil),
        by=AUDIT,
        finding="adapter-file",
        record="run",
    )
    CASES.add(
        who,
        "adapter-folder addition",
        "puts a pickle beside the exported adapter",
        beside,
        by=AUDIT,
        finding="unexpected-file",
        record="adapter_model.bin",
    )


# ---- pairs of whom one only helps ------------------------------------------------------------------


def helped(topics: Callable[[], Topics], **arguments: Any) -> Callable[[], Played]:
    return lambda: audit(topics(), **arguments)


def cut_together() -> Played:
    """Deltas and commits end together; only who kept a checkpoint, a cosignature or a copy can tell."""
    return audit(cut_to(2))


def cut_to(commits: int) -> Topics:
    """All logs as they were after so many commits, with a close record."""
    short = {t: r if t == "global" else r[: 2 * commits + 2] for t, r in honest().items()}
    plan = replace(plan_of(honest()).cut(commits), end=(commits + 1,) * 3)
    return rewritten(short, plan, CONTROLLER)


def after_an_earlier_verification() -> Played:
    """The auditor has verified the longer run, and kept the state of that."""
    true, short = honest(), cut_to(2)
    before = verified(true, None)
    assert before.report.ok
    found = verified(short, stored(before, None)).report
    return Played(noticed(found), found.ok)


def cut_under_a_checkpoint(topic: str) -> Callable[[], Played]:
    """The auditor has kept a signed note of a log from when the run was longer."""

    def play() -> Played:
        tree = Frontier()
        for record in honest()[topic]:
            if record.headers[0] != ("kind", b"chunk"):
                tree.append(record.value)
        name = origin(season().manifest.run_id, topic)
        signer = CONTROLLER if topic == "global" else GATES[0]
        note = Checkpoint(name, tree.size, tree.root()).sign(name, signer).encode()
        return audit(cut_to(2), checkpoints=[note])

    return play


CASES.add(
    "controller + broker",
    "rollback with fresh close",
    "two commits are taken back, and every delta that was signed after them, without witnesses",
    cut_together,
    reason="nothing is left that had read them; with a witness or a checkpoint it is found",
)
CASES.add(
    "controller + broker",
    "rollback with fresh close",
    "the same, before an auditor who has verified the run before",
    after_an_earlier_verification,
    by=AUDIT,
    finding="rewritten",
    record="global@",
)
for topic in ("global", "delta.a"):
    CASES.add(
        "controller + broker",
        "rollback with fresh close",
        f"the same, before an auditor who has a checkpoint of {topic}",
        cut_under_a_checkpoint(topic),
        by=AUDIT,
        finding="checkpoint",
        record=topic,
    )


CASES.add(
    "gate + broker",
    "replay",
    "the gate signs an old delta anew, and the broker shows that one only",
    helped(
        lambda: resigned(
            honest(), 1, GATES[1], lambda d: d.model_copy(update={"sync_us": 5} if d.seq == 1 else {})
        )
    ),
    by=AUDIT,
    finding="heads",
    record="global@5",
)
CASES.add(
    "operator + broker",
    "exchanged manifest",
    "the broker shows a genesis with other terms of the operator's own key",
    helped(lambda: exchanged(OPERATOR)),
    by=AUDIT,
    finding="genesis",
    record="global",
)
CASES.add(
    "gate + operator",
    "exchanged manifest",
    "other terms, and the gate's log anew for them",
    helped(
        lambda: {
            **exchanged(OPERATOR),
            **{
                t: r
                for t, r in resigned(
                    honest(), 1, GATES[1], lambda d: d.model_copy(update={"sync_us": 5})
                ).items()
                if t != "global"
            },
        }
    ),
    by=AUDIT,
    finding="genesis",
    record="global",
)
for who in ("device", "c devices"):
    CASES.add(
        f"{who} + controller",
        "rollback with fresh close",
        "the controller takes back what their update was in",
        again(lambda plan: plan.cut(2)),
        by=AUDIT,
        finding="interlock",
        record="delta.a@7",
    )
    CASES.add(
        f"{who} + operator",
        "exchanged manifest",
        "terms with a lower floor in the place of the run's",
        manifest_under_genesis,
        by=AUDIT,
        finding="genesis",
        record="global@1",
    )
CASES.add(
    "edge + controller",
    "weights and caps",
    "the controller gives the edge's boundary four times its weight",
    on_commit(2, heavier),
    by=AUDIT,
    finding="derivation",
    record="global@5",
)
CASES.add(
    "edge + operator",
    "exchanged manifest",
    "terms with a lower floor in the place of the run's",
    manifest_under_genesis,
    by=AUDIT,
    finding="genesis",
    record="global@1",
)
