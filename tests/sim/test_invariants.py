"""Each invariant is violated once, by hand, in what a good run left, and says so."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from echelon.bus.base import Record
from echelon.bus.chunks import is_chunk
from echelon.messages.boundary import (
    BOUNDARY,
    Cohort,
    DeadLetter,
    Derived,
    Masked,
    Model,
    SealedDelta,
    Window,
)
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Close, Commit, Payload
from echelon.messages.split import EdgePart
from echelon.messages.wire import Message, Reason
from echelon.sim.invariants import INVARIANTS, RunRecords, check
from echelon.sim.outcome import SimOutcome
from echelon.sim.schedule import Schedule
from echelon.sim.world import play

SIGNER = Signer(bytes(range(32)))


@cache
def good() -> SimOutcome:
    names = ("a", "b")
    split = {"b": {"split": {"edges": 1, "timeout": 2.0, "beat": 0.5}}}
    run = {
        "boundaries": [
            {"name": name, "devices": 4, "data": {"source": "text:unused"}, **split.get(name, {})}
            for name in names
        ],
        "budget": {"commits": 3},
        "sync": {"windows": 1, "steps": 3, "deadline": 5},
        "learner": {"kind": "quadratic", "dim": 16, "blocks": 4},
        "window": {"deadline": 3, "round_timeout": 1, "patience": 0.5},
    }
    return play(Schedule(seed=7, run=run))


@cache
def of_two_ranks() -> SimOutcome:
    """A run whose devices have different ranks, one of them the lower one."""
    devices = [{"id": f"a-{number}", "rank": 4 if number else 2} for number in range(4)]
    run = {
        "boundaries": [{"name": "a", "devices": devices, "data": {"source": "text:unused"}}],
        "adapter": {"rank": 4, "rank_blocks": [2, 4]},
        "secure": {"k_min": 2},
        "budget": {"commits": 2},
        "sync": {"windows": 1, "steps": 3, "deadline": 5},
        "learner": {"kind": "quadratic", "dim": 16},
        "window": {"deadline": 3, "round_timeout": 1, "patience": 0.5},
    }
    return play(Schedule(seed=7, run=run))


def meddled(good: Callable[[], SimOutcome] = good) -> SimOutcome:
    """A copy whose records and facts may be changed."""
    outcome = dataclasses.replace(good())
    outcome.topics = {
        broker: {topic: list(records) for topic, records in topics.items()}
        for broker, topics in good().topics.items()
    }
    outcome.started, outcome.auditor = list(good().started), copy.deepcopy(good().auditor)
    outcome.uploads, outcome.secrets = dict(good().uploads), list(good().secrets)
    outcome.failures, outcome.memory = [], dict(good().memory)
    return outcome


def change(
    outcome: SimOutcome,
    boundary: str,
    topic: str,
    kind: type[Message],
    how: Callable[[Message], Message],
    nth: int = 0,
) -> None:
    """Put another body into the n-th record of a kind. Invariants do not look at signatures: the actors did."""
    records = outcome.topics[boundary][topic]
    places = [
        place
        for place, record in enumerate(records)
        if not is_chunk(record) and Envelope.open(record.value).type == kind.kind
    ]
    record = records[places[nth]]
    envelope = Envelope.open(record.value)
    message = how(BOUNDARY.find(envelope.type, envelope.type_version).decode(envelope.body))
    records[places[nth]] = dataclasses.replace(record, value=sealed(message, topic, envelope.sender))


def sealed(message: Message, topic: str, sender: str) -> bytes:
    window = getattr(message, "window", 0)
    return Envelope.seal(SIGNER, message, run=bytes(16), topic=topic, window=window, sender=sender).encode()


def add(outcome: SimOutcome, boundary: str, topic: str, value: bytes) -> None:
    records = outcome.topics[boundary][topic]
    records.append(Record(topic, 0, len(records), b"", value, (), 0))


def updated(message: Message, **fields: object) -> Message:
    return message.model_copy(update=fields)


# ---- how each is violated --------------------------------------------------------------------------


def an_actor_failed(outcome: SimOutcome) -> None:
    outcome.failures.append("a.gate: StateError: lost")


def it_is_stuck(outcome: SimOutcome) -> None:
    outcome.closed, outcome.stuck = False, "a-0 (keys)"


def a_byte_of_the_log_is_changed(outcome: SimOutcome) -> None:
    records = outcome.topics["exchange"]["delta.a"]
    value = bytearray(records[0].value)
    value[0] ^= 1
    records[0] = dataclasses.replace(records[0], value=bytes(value))


def another_adapter_is_used(outcome: SimOutcome) -> None:
    outcome.adapter = np.nextafter(outcome.adapter, np.float32(9))


def a_delta_is_proposed_twice(outcome: SimOutcome) -> None:
    [first, *_] = RunRecords(outcome).messages("a", "delta", SealedDelta)
    other = updated(first, base_commit=first.base_commit + 1)
    add(outcome, "a", "delta", sealed(other, "delta", "a.aggregator"))


def a_window_ends_twice(outcome: SimOutcome) -> None:
    [first, *_] = RunRecords(outcome).messages("a", "control", Window)
    add(outcome, "a", "control", sealed(updated(first, version=77), "control", "a.aggregator"))


def a_window_that_never_closed_is_merged(outcome: SimOutcome) -> None:
    change(outcome, "a", "control", Window, lambda window: updated(window, window=99))


def an_update_is_in_two_sums(outcome: SimOutcome) -> None:
    (one, first), (two, second) = [
        (sha, upload) for sha, upload in outcome.uploads.items() if upload.device == "a-0"
    ][:2]
    assert one != two
    outcome.uploads[two] = dataclasses.replace(second, update=first.update)


def two_members_have_one_shard(outcome: SimOutcome) -> None:
    def how(cohort: Message) -> Message:
        assert isinstance(cohort, Cohort)
        return updated(cohort, members=tuple(updated(member, shards=(3,)) for member in cohort.members))

    change(outcome, "a", "control", Cohort, how)


def an_included_set_is_too_small(outcome: SimOutcome) -> None:
    change(outcome, "a", "control", Window, lambda w: updated(w, included=w.included[:2]))  # type: ignore[attr-defined]


def what_was_rounded_off_is_gone(outcome: SimOutcome) -> None:
    """An update is a little larger than what was summed: its window's mean is not in the deltas as a whole."""
    sha, upload = next((sha, upload) for sha, upload in outcome.uploads.items() if upload.device == "a-1")
    outcome.uploads[sha] = dataclasses.replace(upload, scaled=upload.scaled * 1.01)


def a_record_of_global_is_not_mirrored(outcome: SimOutcome) -> None:
    del outcome.topics["a"]["global"][3]


def a_version_is_another_adapter(outcome: SimOutcome) -> None:
    models = RunRecords(outcome).messages("a", "model", Model)
    payloads = {hashlib.sha256(record.value).digest(): record for record in outcome.topics["a"]["model"]}
    old = payloads[models[-1].payload.sha256]
    new = (np.frombuffer(old.value, "<f4") + np.float32(0.5)).astype("<f4").tobytes()
    place = outcome.topics["a"]["model"].index(old)
    outcome.topics["a"]["model"][place] = dataclasses.replace(old, value=new)
    described = Payload.of(new, b"changed")
    change(outcome, "a", "model", Model, lambda model: updated(model, payload=described), nth=len(models) - 1)


def weights_of_a_device_leave(outcome: SimOutcome) -> None:
    add(outcome, "b", "deadletter", b"\x00\x01\x02" + outcome.secrets[5])


def an_upload_is_not_masked(outcome: SimOutcome) -> None:
    [first, *_] = RunRecords(outcome).messages("a", "masked", Masked)
    upload = outcome.uploads[first.payload.sha256]
    bits = outcome.manifest.secure.scale_bits
    plain = np.zeros(first.payload.length // 4, "<i4")
    plain[: upload.scaled.size] = np.rint(upload.scaled * 2.0**bits)
    described = Payload.of(plain.tobytes(), b"plain")
    outcome.uploads[described.sha256] = upload
    records = outcome.topics["a"]["masked"]
    chunk = next(record for record in records if is_chunk(record))
    records.append(dataclasses.replace(chunk, offset=len(records), value=plain.tobytes()))
    add(
        outcome,
        "a",
        "masked",
        sealed(Masked(window=first.window, payload=described), "masked", upload.device),
    )


def an_honest_record_is_refused(outcome: SimOutcome) -> None:
    letter = DeadLetter(
        topic="masked",
        partition=0,
        offset=3,
        reason=Reason.BAD_SIGNATURE,
        record_sha256=bytes(32),
        detail="x",
    )
    add(outcome, "a", "deadletter", sealed(letter, "deadletter", "a.gate"))


def more_is_open_than_may_be(outcome: SimOutcome) -> None:
    outcome.memory["a.gate"] = (2, 1)


def the_adapter_runs_away(outcome: SimOutcome) -> None:
    outcome.adapter = outcome.adapter - 3 * outcome.optimum.astype(np.float32)


def a_witness_goes_back_in_time(outcome: SimOutcome) -> None:
    outcome.topics["exchange"]["witness.a"].reverse()


def a_verified_record_is_changed(outcome: SimOutcome) -> None:
    records = outcome.topics["exchange"]["global"]
    place = next(at for at, record in enumerate(records) if not is_chunk(record))
    value = bytearray(records[place].value)
    value[-1] ^= 1
    records[place] = dataclasses.replace(records[place], value=bytes(value))


def a_version_is_derived_otherwise(outcome: SimOutcome) -> None:
    change(outcome, "a", "versions", Derived, lambda derived: updated(derived, sha256=bytes(32)), nth=1)


def one_device_alone_adds_its_evaluation(outcome: SimOutcome) -> None:
    window = next(
        window
        for window in RunRecords(outcome).messages("a", "control", Window)
        if window.summary.eval_tokens
    )
    of_window = [sha for sha, one in outcome.uploads.items() if one.window == window.window]
    for sha in [sha for sha in of_window if outcome.uploads[sha].device in ("a-1", "a-2", "a-3")]:
        outcome.uploads[sha] = dataclasses.replace(outcome.uploads[sha], evaluated=False)


def a_part_is_of_two(outcome: SimOutcome) -> None:
    change(outcome, "b", "parts", EdgePart, lambda part: updated(part, devices=part.devices[:2]))  # type: ignore[attr-defined]


def a_middle_is_not_what_was_added(outcome: SimOutcome) -> None:
    for sha, upload in list(outcome.uploads.items()):
        if upload.device == "b-1" and upload.middle is not None:
            outcome.uploads[sha] = dataclasses.replace(upload, middle=upload.middle * np.float32(1.01))


def a_device_moves_rows_beyond_its_rank(outcome: SimOutcome) -> None:
    for sha, upload in list(outcome.uploads.items()):
        if upload.device == "a-0":
            outcome.uploads[sha] = dataclasses.replace(upload, scaled=np.ones_like(upload.scaled))


def another_device_stands_out_of_its_rows(outcome: SimOutcome) -> None:
    for sha, upload in list(outcome.uploads.items()):
        if upload.device == "a-3":
            outcome.uploads[sha] = dataclasses.replace(upload, scaled=upload.scaled * 9)


VIOLATIONS: dict[str, Callable[[SimOutcome], None]] = {
    "no-actor-fails": an_actor_failed,
    "progress": it_is_stuck,
    "audit-verifies": a_byte_of_the_log_is_changed,
    "adapter-is-the-replay": another_adapter_is_used,
    "audited-beside-the-run": a_verified_record_is_changed,
    "versions-are-derived": a_version_is_derived_otherwise,
    "every-sum-holds-the-floor": one_device_alone_adds_its_evaluation,
    "rank-blocks-are-of-enough": a_device_moves_rows_beyond_its_rank,
    "parts-are-of-enough": a_part_is_of_two,
    "parts-add-up": a_middle_is_not_what_was_added,
    "said-once": a_delta_is_proposed_twice,
    "windows-end-once": a_window_ends_twice,
    "windows-in-one-delta": a_window_that_never_closed_is_merged,
    "updates-in-one-sum": an_update_is_in_two_sums,
    "shards-once": two_members_have_one_shard,
    "floors-hold": an_included_set_is_too_small,
    "nothing-is-lost-or-added": what_was_rounded_off_is_gone,
    "crossed-as-sealed": a_record_of_global_is_not_mirrored,
    "adapters-inside": a_version_is_another_adapter,
    "no-device-state-on-a-broker": weights_of_a_device_leave,
    "uploads-are-masked": an_upload_is_not_masked,
    "witnesses-sign-one-history": a_witness_goes_back_in_time,
    "nothing-honest-is-refused": an_honest_record_is_refused,
    "bounded-memory": more_is_open_than_may_be,
    "learns": the_adapter_runs_away,
}


@pytest.mark.slow
def test_a_good_run_violates_none() -> None:
    assert check(good()) == []
    assert any(isinstance(message, Commit) for message in RunRecords(good()).exchange["global"])
    assert any(isinstance(message, Close) for message in RunRecords(good()).exchange["global"])
    assert len(good().uploads) >= 12
    assert good().auditor.state is not None
    assert any(window.parts for window in RunRecords(good()).messages("b", "control", Window))


@pytest.mark.slow
def test_a_job_before_its_version_was_derived_is_seen() -> None:
    outcome = meddled()
    place, job = next((place, job) for place, job in enumerate(outcome.started) if job.version > 0)
    outcome.started[place] = dataclasses.replace(job, derived=job.version)
    [finding] = INVARIANTS["versions-are-derived"](RunRecords(outcome))
    assert f"{job.device} trained from version {job.version} before" in finding


@pytest.mark.slow
def test_an_upload_before_its_bases_were_derived_is_seen() -> None:
    outcome = meddled()
    sha, upload = next((sha, one) for sha, one in outcome.uploads.items() if one.device == "a-2")
    outcome.uploads[sha] = dataclasses.replace(upload, derived=0)
    findings = list(INVARIANTS["versions-are-derived"](RunRecords(outcome)))
    assert any("a-2 masked on version" in finding for finding in findings)


@pytest.mark.slow
def test_a_job_in_two_parts_is_seen() -> None:
    outcome = meddled()
    (_, first), (sha, second) = [(sha, one) for sha, one in outcome.uploads.items() if one.device == "b-1"][
        :2
    ]
    outcome.uploads[sha] = dataclasses.replace(second, jobs=first.jobs)
    assert any("is in 2 parts" in finding for finding in INVARIANTS["parts-add-up"](RunRecords(outcome)))


def test_every_invariant_has_its_violation() -> None:
    assert set(VIOLATIONS) == set(INVARIANTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", INVARIANTS)
def test_it_is_seen(name: str) -> None:
    made = of_two_ranks if name == "rank-blocks-are-of-enough" else good
    outcome = meddled(made)
    VIOLATIONS[name](outcome)
    assert list(INVARIANTS[name](RunRecords(outcome)))
    assert not list(INVARIANTS[name](RunRecords(copy.copy(made()))))


@pytest.mark.slow
def test_rows_of_which_one_device_stands_out_are_seen() -> None:
    assert check(of_two_ranks()) == []
    heads = [one.summary.block_heads for one in RunRecords(of_two_ranks()).messages("a", "control", Window)]
    assert (3,) in heads
    outcome = meddled(of_two_ranks)
    another_device_stands_out_of_its_rows(outcome)
    findings = list(INVARIANTS["rank-blocks-are-of-enough"](RunRecords(outcome)))
    assert any("rows 2 to 3 are of shares" in finding for finding in findings)
