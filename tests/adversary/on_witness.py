"""Insiders against witnesses: heads that are announced, cosignatures that are made, and what policy and audit say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from echelon.audit.findings import Severity
from echelon.audit.heads import CONFLICT, Conflict, Head, headers_of, logs_of
from echelon.audit.merkle import Tree
from echelon.audit.note import Checkpoint, NoteSignature, SignedNote
from echelon.audit.policy import Policy
from echelon.audit.records import StoredRecord
from echelon.audit.verify import verify
from echelon.audit.witness import HeadRefusal
from echelon.messages.envelope import Signer
from tests.adversary.case import Cases, Noticed, Played
from tests.audit.synthetic import GATES, OPERATOR, Exchange
from tests.audit.witnessed import WITNESSES, Watching, note_of, signer_of, tree_of, watched_scenario

CASES = Cases("witness")
AUDIT = "audit verify"
Topics = dict[str, list[StoredRecord]]
ALL = Policy(quorum=2, logs={"global": 3})
"""Of three witnesses, of whom the gates do not witness their own logs."""


@cache
def honest() -> Exchange:
    return watched_scenario()


@cache
def _seen() -> Topics:
    return Watching(honest()).everything().topics


def seen() -> Topics:
    return {topic: list(records) for topic, records in _seen().items()}


def audit(topics: Mapping[str, list[StoredRecord]], policy: Policy | None = None, **arguments: Any) -> Played:
    report = verify(topics, genesis=honest().genesis_sha256, policy=policy, **arguments)
    found = tuple(
        Noticed(AUDIT, one.code.value, one.topic if one.offset is None else f"{one.topic}@{one.offset}")
        for one in report.findings
        if one.severity is not Severity.INFO
    )
    return Played(found, report.ok)


# ---- what a witness is shown -----------------------------------------------------------------------


def other_tree(topic: str) -> Tree:
    """Another history of a log, of the same length."""
    topics = honest().topics
    return tree_of([*topics[topic][:-1], topics["global"][-2]])


def announced(
    topic: str, signer: Signer, tree: Callable[[str], Tree], *, size: int = 0, old: int = 0
) -> Callable[[], Played]:
    """A witness that has cosigned all of a log is shown this head; what is wanted is that it takes it."""

    def play() -> Played:
        watching = Watching(honest()).everything()
        core = watching.cores["w"]
        other = tree(topic)
        many = size or len(other)
        origin = logs_of(honest().manifest)[topic].origin
        note = Checkpoint(origin, many, other.root(many)).sign(origin, signer)
        proof = tuple(other.consistency(old, many)) if 0 < old < many else ()
        before = core.known[topic]
        found = core.take(topic, Head(old, proof, note).encode())
        taken = core.known[topic] != before
        said = (
            (Noticed("witness", found.reason.value, f"head.{topic}"),)
            if isinstance(found, HeadRefusal)
            else ()
        )
        return Played(said, taken)

    return play


def true_tree(topic: str) -> Tree:
    return tree_of(honest().topics[topic])


def longer_tree(topic: str) -> Tree:
    topics = honest().topics
    return tree_of([*topics[topic][:-3], *topics["global"][-6:], *topics["delta.a"], *topics["delta.b"]])


for who, topic in (("controller", "global"), ("gate", "delta.a")):
    writer = signer_of(topic)
    CASES.add(
        who,
        "rollback with fresh close",
        f"announces an older head of {topic}",
        announced(topic, writer, true_tree, size=2, old=1),
        by="witness",
        finding="behind",
        record=f"head.{topic}",
    )
    CASES.add(
        who,
        "rollback with fresh close",
        f"announces another head of {topic} of the same size",
        announced(topic, writer, other_tree),
        by="witness",
        finding="fork",
        record=f"head.{topic}",
    )
    CASES.add(
        who,
        "rollback with fresh close",
        f"announces a longer head of {topic} of another history",
        announced(topic, writer, longer_tree, old=len(true_tree(topic))),
        by="witness",
        finding="fork",
        record=f"head.{topic}",
    )
STRANGERS: dict[str, Signer] = {
    "device": Signer(b"\x41" * 32),
    "aggregator": Signer(b"\x42" * 32),
    "edge": Signer(b"\x43" * 32),
    "gate": GATES[1],
    "operator": OPERATOR,
    "witness": WITNESSES["a"],
    "broker": Signer(b"\x44" * 32),
}
for who, signer in STRANGERS.items():
    CASES.add(
        who,
        "unsigned or forged record",
        "announces a head of `global` with its own key",
        announced("global", signer, longer_tree, old=len(true_tree("global"))),
        by="witness",
        finding="unsigned",
        record="head.global",
    )


# ---- what a witness signs --------------------------------------------------------------------------


def cosigns(topic: str, signer: Signer | None, name: str = "w") -> Callable[[], Played]:
    """A witness cosigns another history of a log, which its writer (or somebody else) has signed for it."""

    def play() -> Played:
        watching = Watching(honest()).everything()
        tree = other_tree(topic)
        shown = note_of(honest().manifest, topic, tree, len(tree))
        if signer is not None:
            origin = logs_of(honest().manifest)[topic].origin
            shown = Checkpoint(origin, len(tree), tree.root()).sign(origin, signer)
        core = watching.cores[name]
        watching.write(name, topic, shown.cosign(core.name, core.signer, 5_000))
        return audit(watching.topics)

    return play


CASES.add(
    "controller + witness",
    "witness signs two histories",
    "the controller signs a second `global` for it",
    cosigns("global", None),
    by=AUDIT,
    finding="fork",
    record="global",
)
CASES.add(
    "gate + witness",
    "witness signs two histories",
    "the gate signs a second delta log for it",
    cosigns("delta.a", None),
    by=AUDIT,
    finding="fork",
    record="delta.a",
)
for who, signer in (
    ("witness", WITNESSES["w"]),
    ("device + witness", STRANGERS["device"]),
    ("c devices + witness", Signer(b"\x45" * 32)),
    ("aggregator + witness", STRANGERS["aggregator"]),
    ("edge + witness", STRANGERS["edge"]),
    ("operator + witness", OPERATOR),
    ("broker + witness", STRANGERS["broker"]),
):
    CASES.add(
        who,
        "witness signs two histories",
        "a second `global` is cosigned that the controller has not signed",
        cosigns("global", signer),
        by=AUDIT,
        finding="witness",
        record="witness.w@",
    )


def forged_cosignature(change: Callable[[StoredRecord], StoredRecord]) -> Callable[[], Played]:
    def play() -> Played:
        topics = seen()
        topics["witness.a"][-1] = change(topics["witness.a"][-1])
        return audit(topics)

    return play


def _as(record: StoredRecord, value: bytes) -> StoredRecord:
    return StoredRecord(record.topic, record.offset, record.key, value, record.headers)


def _signed_by_w(record: StoredRecord) -> StoredRecord:
    """The cosignature line of w under the name of a."""
    topic = record.key.decode()
    forged = note_of(honest().manifest, topic, true_tree(topic), len(true_tree(topic)))
    core = Watching(honest()).cores["a"]
    return _as(record, forged.cosign(core.name, WITNESSES["w"], 9_000).encode())


FORGED: tuple[tuple[str, str, Callable[[StoredRecord], StoredRecord]], ...] = (
    (
        "witness",
        "writes another witness's cosignature as its own",
        lambda r: _as(r, seen()["witness.b"][-1].value),
    ),
    ("witness", "cosigns with another witness's key", _signed_by_w),
    ("witness", "writes what is no note", lambda r: _as(r, b"")),
    (
        "broker",
        "puts a cosignature under another log's name",
        lambda r: StoredRecord(r.topic, r.offset, b"global2", r.value, r.headers),
    ),
    (
        "broker",
        "changes a byte of a cosignature",
        lambda r: _as(r, r.value[:40] + bytes([r.value[40] ^ 1]) + r.value[41:]),
    ),
)
for who, does, change in FORGED:
    CASES.add(
        who,
        "forged cosignature",
        does,
        forged_cosignature(change),
        by=AUDIT,
        finding="witness",
        record="witness.a@",
    )


def kept_back(*names: str) -> Callable[[], Played]:
    def play() -> Played:
        topics = seen()
        for name in names:
            topics[f"witness.{name}"] = []
        return audit(topics, ALL)

    return play


CASES.add(
    "witness",
    "absent cosignature",
    "cosigns nothing",
    kept_back("b"),
    by=AUDIT,
    finding="cosignatures",
    record="global",
)
CASES.add(
    "broker",
    "absent cosignature",
    "keeps all cosignatures back",
    kept_back("a", "b", "w"),
    by=AUDIT,
    finding="cosignatures",
    record="global",
)
CASES.add(
    "broker + witness",
    "absent cosignature",
    "one witness cosigns nothing, and another's records are dropped",
    kept_back("b", "w"),
    by=AUDIT,
    finding="cosignatures",
    record="delta.a",
)


def no_policy() -> Played:
    topics = seen()
    for name in WITNESSES:
        topics[f"witness.{name}"] = []
    return audit(topics)


CASES.add(
    "witness",
    "absent cosignature",
    "cosigns nothing, before an auditor without a policy",
    no_policy,
    reason="only a policy says how many must have cosigned",
)


def strange_lines() -> Played:
    """Lines of keys that nobody knows are ignored, as the specification says."""
    topics = seen()
    for place, record in enumerate(topics["witness.w"]):
        note = SignedNote.decode(record.value)
        strange = NoteSignature("example.com/other", b"\1\2\3\4", bytes(2428))
        topics["witness.w"][place] = _as(record, SignedNote(note.text, (strange, *note.signatures)).encode())
    played = audit(topics, ALL)
    return Played(
        (Noticed(AUDIT, "nothing changes", "witness.w"),) if played.gained else played.noticed, False
    )


CASES.add(
    "witness",
    "forged cosignature",
    "adds lines of unknown keys",
    strange_lines,
    by=AUDIT,
    finding="nothing changes",
    record="witness.w",
)


def invented_conflict() -> Played:
    """A witness says that a gate has forked, with a note that the gate has not signed."""
    topics = seen()
    tree, origin = other_tree("delta.b"), logs_of(honest().manifest)["delta.b"].origin
    true = note_of(honest().manifest, "delta.b", true_tree("delta.b"), len(true_tree("delta.b"))).encode()
    forged = Checkpoint(origin, len(tree), tree.root()).sign(origin, WITNESSES["a"]).encode()
    value = Conflict(known=true, refused=forged).encode()
    place = len(topics["witness.a"])
    topics["witness.a"].append(StoredRecord("witness.a", place, b"delta.b", value, headers_of(CONFLICT)))
    played = audit(topics)
    accused = any(one.finding == "fork" for one in played.noticed)
    return Played(played.noticed, accused)


CASES.add(
    "witness",
    "forged cosignature",
    "says that a gate has forked that has not",
    invented_conflict,
    by=AUDIT,
    finding="witness",
    record="witness.a@",
)


def told_conflict(topic: str) -> Callable[[], Played]:
    """A writer shows its witness a fork; the witness publishes both notes."""

    def play() -> Played:
        topics = seen()
        notes = [
            note_of(honest().manifest, topic, t, len(t)).encode()
            for t in (true_tree(topic), other_tree(topic))
        ]
        value = Conflict(known=notes[0], refused=notes[1]).encode()
        place = len(topics["witness.w"])
        topics["witness.w"].append(
            StoredRecord("witness.w", place, topic.encode(), value, headers_of(CONFLICT))
        )
        return audit(topics)

    return play


CASES.add(
    "gate",
    "witness signs two histories",
    "shows one witness another delta log than the rest",
    told_conflict("delta.b"),
    by=AUDIT,
    finding="fork",
    record="delta.b",
)
CASES.add(
    "controller",
    "witness signs two histories",
    "shows one witness another `global` than the rest",
    told_conflict("global"),
    by=AUDIT,
    finding="fork",
    record="global",
)


# ---- rollback with witnesses -----------------------------------------------------------------------


def short_run(commits: int) -> Exchange:
    """A run whose last commit no delta has read: it may be taken back by the controller's key alone."""
    exchange = Exchange(honest().manifest)
    for boundary in (0, 1):
        exchange.delta(boundary)
    if commits:
        exchange.commit()
    exchange.close()
    return exchange


def rolled_back(*helpers: str, policy: Policy | None = None) -> Callable[[], Played]:
    """The controller shows a run without its last commit; witnesses who do not help have cosigned the true one."""

    def play() -> Played:
        true, rolled = short_run(1), short_run(0)
        assert true.genesis_sha256 == rolled.genesis_sha256
        topics = rolled.topics
        for exchange, names in ((true, set(WITNESSES) - set(helpers)), (rolled, set(helpers))):
            watching = Watching(exchange).everything()
            topics |= {f"witness.{name}": watching.topics[f"witness.{name}"] for name in names}
            if exchange is rolled:
                topics |= {t: r for t, r in watching.topics.items() if t.startswith("head.")}
        report = verify(topics, genesis=true.genesis_sha256, policy=policy)
        found = tuple(
            Noticed(AUDIT, one.code.value, one.topic if one.offset is None else f"{one.topic}@{one.offset}")
            for one in report.findings
            if one.severity is not Severity.INFO
        )
        return Played(found, report.ok)

    return play


CASES.add(
    "controller",
    "rollback with fresh close",
    "takes back a commit that no delta had read yet, before witnesses",
    rolled_back(),
    by=AUDIT,
    finding="checkpoint",
    record="global",
)
CASES.add(
    "controller + witness",
    "rollback with fresh close",
    "the same, and one witness cosigns both",
    rolled_back("w"),
    by=AUDIT,
    finding="checkpoint",
    record="global",
)
CASES.add(
    "controller + witness",
    "rollback with fresh close",
    "the same, and all witnesses are with the controller",
    rolled_back("a", "b", "w", policy=ALL),
    reason="nobody outside kept anything; name a witness of your own in the policy",
)


def rolled_and_kept_back(policy: Policy | None) -> Callable[[], Played]:
    """The broker keeps from the auditor what honest witnesses have written."""

    def play() -> Played:
        rolled = short_run(0)
        watching = Watching(rolled).everything()
        topics = {
            t: r for t, r in watching.topics.items() if not t.startswith("witness.") or t == "witness.w"
        }
        topics |= {f"witness.{name}": [] for name in ("a", "b")}
        report = verify(topics, genesis=rolled.genesis_sha256, policy=policy)
        found = tuple(
            Noticed(AUDIT, one.code.value, one.topic if one.offset is None else f"{one.topic}@{one.offset}")
            for one in report.findings
            if one.severity is not Severity.INFO
        )
        return Played(found, report.ok)

    return play


CASES.add(
    "controller + broker",
    "rollback with fresh close",
    "a commit that no delta had read is taken back, and cosignatures kept back, before an auditor with a policy",
    rolled_and_kept_back(ALL),
    by=AUDIT,
    finding="cosignatures",
    record="global",
)


# ---- topics ----------------------------------------------------------------------------------------


def stray(topic: str) -> Callable[[], Played]:
    return lambda: audit({**seen(), topic: [StoredRecord(topic, 3, b"", b"", ())]})


for who, topic in (
    ("broker", "witness.z"),
    ("broker", "head.delta.z"),
    ("operator + witness", "witness.friend"),
    ("broker + witness", "witness."),
):
    CASES.add(
        who,
        "undeclared topic",
        f"keeps records on `{topic}`",
        stray(topic),
        by=AUDIT,
        finding="unexpected-topic",
        record=f"{topic}@3",
    )


def reordered() -> Played:
    """Cosignatures stand in another order than they were made in."""
    topics = seen()
    for name in WITNESSES:
        records = topics[f"witness.{name}"]
        topics[f"witness.{name}"] = [
            StoredRecord(r.topic, place, r.key, r.value, r.headers)
            for place, r in enumerate(reversed(records))
        ]
    played = audit(topics, ALL)
    return Played(
        (Noticed(AUDIT, "nothing changes", "witness.w"),) if played.gained else played.noticed, False
    )


CASES.add(
    "broker",
    "reordered records",
    "puts cosignatures in another order",
    reordered,
    by=AUDIT,
    finding="nothing changes",
    record="witness.w",
)


def cut_behind(topic: str) -> Callable[[], Played]:
    def play() -> Played:
        topics = seen()
        del topics[topic][-1]
        return audit(topics)

    return play


for topic in ("delta.a", "global"):
    CASES.add(
        "broker",
        "dropped record",
        f"drops the end of {topic} that was cosigned",
        cut_behind(topic),
        by=AUDIT,
        finding="checkpoint",
        record=topic,
    )
