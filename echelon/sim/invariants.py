"""What must hold after every run, whatever went wrong in it: each invariant is one function over what the run left.

They are written against the records on the brokers and what only the simulation knows (the updates under the masks),
not against the actors' own state, and share no derivation with them: windows, deltas and updates are counted and added
up here once more, in the simplest way there is.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echelon.audit.heads import COSIGNATURE, WITNESS_PREFIX, key_name, kind_of
from echelon.audit.note import Checkpoint, SignedNote
from echelon.audit.policy import Policy
from echelon.laws.delta_codec import decode
from echelon.messages.boundary import (
    Adopt,
    Cohort,
    DeadLetter,
    Masked,
    Model,
    SealedDelta,
    Sealing,
    Void,
    Window,
)
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.messages.wire import Reason
from echelon.sim.left import F64, RunRecords, is_closing, moved_by, sums_of
from echelon.sim.sums import (
    every_sum_holds_the_floor,
    parts_add_up,
    parts_are_of_enough,
    versions_are_derived,
)
from echelon.sim.world import Outcome

SOURCE_OFFSET = "source-offset"
HARMLESS = frozenset({Reason.OUT_OF_ORDER, Reason.PROTOCOL})
"""Reasons for which an honest record may be refused: it came too late, or its window was left."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant that does not hold, and how."""

    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.detail}"


# ---- the run as a whole ----------------------------------------------------------------------------


def no_actor_fails(left: RunRecords) -> Iterator[str]:
    """Faults of links, processes and disks end no actor with an error."""
    yield from left.outcome.failures


def progress(left: RunRecords) -> Iterator[str]:
    """Once faults stop, the run reaches its budget and everybody ends, within the schedule's patience."""
    if not left.outcome.closed and not left.outcome.failures:
        yield f"{left.outcome.seconds:.0f} s, and these have not ended: {left.outcome.stuck}"


def audit_verifies(left: RunRecords) -> Iterator[str]:
    """The independent verifier finds no error on the exchange."""
    for finding in left.report.findings:
        if finding.severity.value == "error":
            yield str(finding)


def adapter_is_the_replay(left: RunRecords) -> Iterator[str]:
    """The controller's last adapter, the one that `close` names and the one derived from the log are the same bits."""
    closes = [message for message in left.exchange["global"] if isinstance(message, Close)]
    if not left.outcome.closed and not closes:
        return
    if len(closes) != 1:
        yield f"the run was closed {len(closes)} times"
        return
    held = hashlib.sha256(np.ascontiguousarray(left.outcome.adapter, "<f4").tobytes()).digest()
    if not held == closes[0].adapter_sha256 == left.report.adapter_sha256:
        yield "the adapter of the controller, of `close` and of the replay are not the same"


def audited_beside_the_run(left: RunRecords) -> Iterator[str]:
    """Whoever audits while the run goes on accuses nobody, and comes to what one verification of everything says."""
    yield from left.outcome.auditor.accused
    topics = {name: list(records) for name, records in left.outcome.topics["exchange"].items()}
    again = replace(left.outcome.auditor)  # what is checked stays as it was
    policy = Policy(0, left.watchers)
    found = again.verify(
        topics, genesis=left.outcome.genesis or None, policy=policy, sightings=left.sightings()
    )
    if found.report != left.report:
        yield f"it says other things than the verification of everything, after {found.began} records verified before"


def bounded_memory(left: RunRecords) -> Iterator[str]:
    """Open transfers never hold more than their bound."""
    for actor, (most, bound) in left.outcome.memory.items():
        if most > bound:
            yield f"{actor} held {most} bytes of open transfers, at most {bound} are allowed"


def nothing_honest_is_refused(left: RunRecords) -> Iterator[str]:
    """In a federation without adversaries no record is refused for what only an adversary would write."""
    for boundary in left.boundaries:
        for letter in left.messages(boundary, "deadletter", DeadLetter):
            if letter.reason not in HARMLESS:
                yield f"{boundary}: {letter.topic}@{letter.offset} as {letter.reason.value}: {letter.detail}"


# ---- numbers ---------------------------------------------------------------------------------------


_NUMBERS: dict[str, tuple[str, ...]] = {
    "control": ("window", "seq", "version"),
    "model": ("version",),
    "masked": ("window",),
    "handshake": ("window",),
    "delta": ("seq",),
    "versions": ("version",),
    "parts": ("window",),
}


def said_once(left: RunRecords) -> Iterator[str]:
    """Nobody says two different things under one number: no (boundary, seq) twice, nor window, version or commit."""
    for boundary in left.boundaries:
        for topic, names in _NUMBERS.items():
            bodies: dict[tuple[str, str, str, int], set[bytes]] = {}
            for one in left.said(boundary, topic):
                for name in names:
                    value = getattr(one.message, name, None)
                    if value is None or (
                        name == "version" and topic == "control" and one.message.kind != "adopt"
                    ):
                        continue
                    key = (one.sender, one.message.kind, name, value)
                    bodies.setdefault(key, set()).add(one.body)
            for (sender, kind, name, value), different in bodies.items():
                if len(different) > 1:
                    yield f"{boundary}/{topic}: {sender} said {len(different)} different {kind} for {name} {value}"
    for topic, messages in left.exchange.items():
        numbers: Counter[int] = Counter()
        for message in messages:
            if isinstance(message, Delta):
                numbers[message.seq] += 1
            elif isinstance(message, Genesis | Commit | Refusal | Close):
                numbers[message.index] += 1
        for number, times in numbers.items():
            if times > 1:
                yield f"{topic}: {times} different records with number {number}"
        if sorted(numbers) != list(range(len(numbers))):
            yield f"{topic}: its numbers are not 0 to {len(numbers) - 1}"


# ---- windows, updates, deltas ----------------------------------------------------------------------


def windows_end_once(left: RunRecords) -> Iterator[str]:
    """Every window ends exactly once, with a sum or without, and in order."""
    for boundary in left.boundaries:
        ended = [
            one.message.window
            for one in left.said(boundary, "control")
            if isinstance(one.message, Window | Void)
        ]
        if ended != list(range(len(ended))):
            yield f"{boundary}: windows ended as {ended}"


def windows_in_one_delta(left: RunRecords) -> Iterator[str]:
    """Every window is in at most one delta that counts, and only windows with a sum are in one."""
    for index, boundary in enumerate(left.boundaries):
        closed = {window.window for window in left.messages(boundary, "control", Window)}
        merged = [
            (merged.boundary, merged.seq)
            for message in left.exchange["global"]
            if isinstance(message, Commit)
            for merged in message.merged
        ]
        for key, times in Counter(merged).items():
            if times > 1:
                yield f"delta {key} was merged {times} times"
        deltas = {
            message.seq: message
            for message in left.exchange[f"delta.{boundary}"]
            if isinstance(message, Delta)
        }
        covered = Counter(
            window.window
            for number, seq in set(merged)
            if number == index and seq in deltas
            for window in deltas[seq].windows
        )
        for _, seq in (key for key in set(merged) if key[0] == index and key[1] not in deltas):
            yield f"{boundary}: delta {seq} was merged and never sent"
        for window, times in covered.items():
            if times > 1:
                yield f"{boundary}: window {window} is in {times} merged deltas"
            if window not in closed:
                yield f"{boundary}: window {window} was merged and never closed"


def updates_in_one_sum(left: RunRecords) -> Iterator[str]:
    """Every update of a device is in at most one sum: by its content, and by its number."""
    for boundary in left.boundaries:
        content: Counter[tuple[str, int, bytes]] = Counter()
        numbers: Counter[tuple[str, int]] = Counter()
        for window, _, uploads in sums_of(left, boundary):
            for upload in uploads:
                if isinstance(upload, str):
                    yield f"{boundary}: window {window.window} has an upload of {upload} that it never made"
                    continue
                content[upload.device, upload.memory, upload.update.tobytes()] += 1
                numbers[upload.device, upload.offer] += 1
        for (device, _, _), times in content.items():
            if times > 1:
                yield f"{boundary}: one update of {device} is in {times} sums"
        for (device, number), times in numbers.items():
            if times > 1:
                yield f"{boundary}: update {number} of {device} is in {times} sums"


def shards_once(left: RunRecords) -> Iterator[str]:
    """No two members of a cohort were trained on one data shard."""
    for boundary in left.boundaries:
        for cohort in left.messages(boundary, "control", Cohort):
            named = Counter(shard for member in cohort.members for shard in member.shards)
            for shard, times in named.items():
                if times > 1:
                    yield f"{boundary}: window {cohort.window}: shard {shard} is in {times} updates"


def floors_hold(left: RunRecords) -> Iterator[str]:
    """No cohort and no included set is below the floor of heads or of weight."""
    secure = left.outcome.manifest.secure
    floor = secure.k_min + secure.colluding
    for boundary in left.boundaries:
        cohorts = {
            cohort.window: {member.device: member.weight for member in cohort.members}
            for cohort in left.messages(boundary, "control", Cohort)
        }
        sets = [(window, "cohort", list(weights.values())) for window, weights in cohorts.items()]
        for window in left.messages(boundary, "control", Window):
            weights = cohorts.get(window.window, {})
            if not set(window.included) <= set(weights):
                yield f"{boundary}: window {window.window} includes who was not in its cohort"
            else:
                sets.append((window.window, "included set", [weights[name] for name in window.included]))
        for number, what, held in sets:
            if len(held) < floor:
                yield f"{boundary}: window {number}: {what} of {len(held)}, the floor is {floor}"
            elif sum(held) < secure.k_min * max(held):
                yield f"{boundary}: window {number}: one device has {max(held)} of the {what}'s weight {sum(held)}"


def nothing_is_lost_or_added(left: RunRecords) -> Iterator[str]:
    """What windows moved is in the deltas, all of it and nothing else, to the rounding of the newest delta.

    The updates under the masks are added up as they are, window by window; each sealed delta is subtracted. What
    remains may never exceed half a unit of that delta's grid (and the rounding of the masked integers).
    """
    secure = left.outcome.manifest.secure
    dim = left.outcome.initial.size
    grain = 2.0**-secure.scale_bits
    for boundary in left.boundaries:
        means: dict[int, tuple[F64, float]] = {}
        for window, n, uploads in sums_of(left, boundary):
            total = moved_by(left, boundary, window, uploads)
            factor = secure.weight_max / (secure.staleness[0] * n)
            means[window.window] = (total * factor, 2 * len(uploads) * grain * factor)
        payloads = left.payloads(boundary, "delta")
        deltas = {delta.seq: delta for delta in left.messages(boundary, "delta", SealedDelta)}
        values: dict[int, F64] = {}
        slacks: dict[int, float] = {}
        remainder, slack = np.zeros(dim), 1e-9
        held: list[int] = []
        for one in left.said(boundary, "control"):
            match one.message:
                case Window():
                    mean, error = means[one.message.window]
                    remainder, slack = remainder + mean, slack + error
                    held.append(one.message.window)
                case Sealing() if one.message.seq in deltas:
                    delta = deltas[one.message.seq]
                    if sorted(held) != [window.window for window in delta.windows]:
                        covered = [window.window for window in delta.windows]
                        yield f"{boundary}: delta {delta.seq} holds windows {covered}, due were {sorted(held)}"
                    payload = payloads.get(delta.payload.sha256)
                    if payload is None:
                        yield f"{boundary}: delta {delta.seq} has no payload"
                        break
                    value = decode(payload, delta.exponent, delta.codec)
                    remainder = remainder - value
                    grid = 0.5 * math.ldexp(1.0, delta.exponent)
                    worst = float(np.abs(remainder).max())
                    if worst > grid + slack:
                        yield (
                            f"{boundary}: after delta {delta.seq} {worst:.3g} remain of a coordinate, at most "
                            f"{grid:.3g} of rounding and {slack:.3g} of masking may"
                        )
                        break
                    values[delta.seq], slacks[delta.seq] = value, slack
                    held = []
                case Sealing():
                    if left.outcome.closed and not is_closing(left):
                        yield f"{boundary}: delta {one.message.seq} was sealed and never proposed"
                    break
                case Adopt():
                    for seq in one.message.returned:
                        remainder = remainder + values[seq]
                        held += [window.window for window in deltas[seq].windows]
                case _:
                    pass


def crossed_as_sealed(left: RunRecords) -> Iterator[str]:
    """What crossed is what was sealed inside, and `global` stands inside as it stands outside."""
    for boundary in left.boundaries:
        sealed = {delta.seq: delta for delta in left.messages(boundary, "delta", SealedDelta)}
        for message in left.exchange[f"delta.{boundary}"]:
            if isinstance(message, Delta):
                delta = sealed.get(message.seq)
                if delta is None:
                    yield f"{boundary}: delta {message.seq} crossed and was never sealed"
                elif (delta.payload.sha256, delta.windows) != (message.payload.sha256, message.windows):
                    yield f"{boundary}: delta {message.seq} crossed otherwise than it was sealed"
        yield from _mirrored(left, boundary)


def _mirrored(left: RunRecords, boundary: str) -> Iterator[str]:
    outside = {record.offset: record for record in left.outcome.topics["exchange"]["global"]}
    following = 0
    for record in left.outcome.topics[boundary]["global"]:
        offsets = [int.from_bytes(value, "big") for name, value in record.headers if name == SOURCE_OFFSET]
        origin = outside.get(offsets[0]) if len(offsets) == 1 else None
        headers = tuple(header for header in record.headers if header[0] != SOURCE_OFFSET)
        if origin is None or (origin.key, origin.value, origin.headers) != (
            record.key,
            record.value,
            headers,
        ):
            yield f"{boundary}: global@{record.offset} is no record of the exchange"
        elif origin.offset > following:
            yield f"{boundary}: global@{record.offset} was mirrored before what stands ahead of it"
            return
        else:
            following = max(following, origin.offset + 1)
    # A controller that dies as it closes the run may repeat its last records behind the close: nobody waits for those.
    closes = [offset for offset, record in outside.items() if ("kind", b"close") in record.headers]
    due = min(closes) + 1 if closes else len(outside)
    if left.outcome.closed and following < due:
        yield f"{boundary}: {due - following} records of the exchange's global are missing inside"


def adapters_inside(left: RunRecords) -> Iterator[str]:
    """Every version of the boundary adapter is anchor + pending deltas + remainder, to the rounding of float32."""
    secure = left.outcome.manifest.secure
    dim = left.outcome.initial.size
    anchors = _anchors(left)
    for boundary in left.boundaries:
        means = {}
        for window, n, uploads in sums_of(left, boundary):
            total = moved_by(left, boundary, window, uploads)
            factor = secure.weight_max / (secure.staleness[0] * n)
            means[window.window] = total * factor
        payloads = left.payloads(boundary, "model")
        models = {model.version: model for model in left.messages(boundary, "model", Model)}
        moved, commit = np.zeros(dim), 0
        merged: dict[int, F64] = {}
        deltas = {delta.seq: delta for delta in left.messages(boundary, "delta", SealedDelta)}
        inside = left.payloads(boundary, "delta")
        versions: dict[int, F64] = {}
        for one in left.said(boundary, "control"):
            match one.message:
                case Window():
                    moved = moved + means[one.message.window]
                    versions[one.message.version] = _at(anchors, commit) + moved
                case Sealing() if one.message.seq in deltas:
                    delta = deltas[one.message.seq]
                    payload = inside.get(delta.payload.sha256)
                    if payload is not None:
                        merged[delta.seq] = decode(payload, delta.exponent, delta.codec)
                case Adopt():
                    commit = one.message.commit
                    for seq in (*one.message.merged, *one.message.dropped):
                        if seq in merged:
                            moved = moved - merged[seq]
                    versions[one.message.version] = _at(anchors, commit) + moved
                case _:
                    pass
        for version, expected in versions.items():
            model = models.get(version)
            payload = None if model is None else payloads.get(model.payload.sha256)
            if payload is None:
                continue
            theta = np.frombuffer(payload[: 4 * dim], "<f4").astype(np.float64)
            worst = float(np.abs(theta - expected).max())
            if worst > 1e-3 * (1.0 + float(np.abs(expected).max())):
                yield f"{boundary}: version {version} is off by {worst:.3g} from what its windows add up to"
                break


def _anchors(left: RunRecords) -> dict[int, F64]:
    payloads = left.payloads("exchange", "global")
    found = {0: left.outcome.initial.astype(np.float64)}
    for message in left.exchange["global"]:
        if isinstance(message, Commit) and message.payload.sha256 in payloads:
            payload = payloads[message.payload.sha256]
            found[message.commit] = np.frombuffer(payload, "<f4").astype(np.float64)
    return found


def _at(anchors: dict[int, F64], commit: int) -> F64:
    return anchors[commit]


def learns(left: RunRecords) -> Iterator[str]:
    """With plain averaging, what was merged ends nearer to the optimum than where it began, or not far beyond it."""
    outer = left.outcome.manifest.outer
    commits = sum(isinstance(message, Commit) for message in left.exchange["global"])
    if outer.kind.value != "average" or not left.outcome.closed or commits < 2:
        return
    optimum = left.outcome.optimum
    start = float(np.linalg.norm(left.outcome.initial - optimum))
    end = float(np.linalg.norm(left.outcome.adapter - optimum))
    if not end < 1.5 * start + 0.5:
        yield f"the adapter ended {end:.3g} from the optimum, and began {start:.3g} from it"


# ---- what must stay where it is --------------------------------------------------------------------


def no_device_state_on_a_broker(left: RunRecords) -> Iterator[str]:
    """Not two consecutive numbers of a device's weights or update, nor its marks, stand on any broker, masks apart."""
    keys = _patterns(left.outcome.secrets)
    for broker, topics in left.outcome.topics.items():
        for topic, records in topics.items():
            text = b"".join(record.value for record in records)
            found = _search(text, keys)
            if found is not None:
                yield f"{broker}/{topic} holds bytes of a device's state ({found.hex()})"


def _patterns(secrets: list[bytes]) -> NDArray[np.uint64]:
    """Every two consecutive float32 of the secrets as one integer; pairs with a zero are no pattern."""
    pairs = []
    for secret in secrets:
        for start in (0, 4):
            usable = len(secret[start:]) // 8 * 8
            pairs.append(np.frombuffer(secret[start : start + usable], "<u8"))
    if not pairs:
        return np.zeros(0, np.uint64)
    every = np.unique(np.concatenate(pairs))
    low, high = every & np.uint64(0x7FFFFFFF), (every >> np.uint64(32)) & np.uint64(0x7FFFFFFF)
    return np.asarray(every[(low != 0) & (high != 0)], np.uint64)


def _search(text: bytes, keys: NDArray[np.uint64]) -> bytes | None:
    if not keys.size:
        return None
    for shift in range(8):
        usable = (len(text) - shift) // 8 * 8
        if usable <= 0:
            break
        words = np.frombuffer(text, "<u8", usable // 8, shift)
        places = np.searchsorted(keys, words)
        places[places == keys.size] = 0
        hits = words[keys[places] == words]
        if hits.size:
            return bytes(hits[:1].astype("<u8").tobytes())
    return None


def witnesses_sign_one_history(left: RunRecords) -> Iterator[str]:
    """No witness cosigns two histories of a log or calls an honest writer's a fork; its times never fall."""
    manifest = left.outcome.manifest
    keys = {witness.name: bytes.fromhex(witness.public) for witness in manifest.witnesses}
    for witness, public in keys.items():
        topic = f"{WITNESS_PREFIX}{witness}"
        roots: dict[tuple[str, int], bytes] = {}
        last = 0
        seen: set[bytes] = set()
        for record in left.outcome.topics["exchange"][topic]:
            if kind_of(record) != COSIGNATURE:
                yield f"{topic}@{record.offset}: an honest log is said to have two histories"
                continue
            if record.value in seen:
                continue
            seen.add(record.value)
            note = SignedNote.decode(record.value)
            time = note.cosigned(key_name(manifest, witness), public)
            checkpoint = Checkpoint.parse(note.text)
            place = (checkpoint.origin, checkpoint.size)
            if roots.setdefault(place, checkpoint.root) != checkpoint.root:
                yield f"{topic}@{record.offset}: two histories of {checkpoint.origin} at {checkpoint.size} manifests"
            if time is None or time < last:
                yield f"{topic}@{record.offset}: cosigned at {time}, after {last}"
            last = time or last


def uploads_are_masked(left: RunRecords) -> Iterator[str]:
    """No masked upload shows the update under it: its integers are not those of the update."""
    secure = left.outcome.manifest.secure
    dim = left.outcome.initial.size
    for boundary in left.boundaries:
        payloads = left.payloads(boundary, "masked")
        for message in left.messages(boundary, "masked", Masked):
            upload = left.outcome.uploads.get(message.payload.sha256)
            payload = payloads.get(message.payload.sha256)
            if upload is None or payload is None:
                continue
            shown = np.frombuffer(payload, "<i4")[:dim].astype(np.float64)
            plain = upload.scaled * 2.0**secure.scale_bits
            near = np.abs(shown - plain) <= 2.0
            if int(near.sum()) * 2 > dim:
                yield f"{boundary}: the upload of {upload.device} for window {message.window} is not masked"


INVARIANTS: dict[str, Callable[[RunRecords], Iterator[str]]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        no_actor_fails,
        progress,
        audit_verifies,
        adapter_is_the_replay,
        audited_beside_the_run,
        said_once,
        windows_end_once,
        windows_in_one_delta,
        updates_in_one_sum,
        shards_once,
        floors_hold,
        versions_are_derived,
        every_sum_holds_the_floor,
        parts_are_of_enough,
        parts_add_up,
        nothing_is_lost_or_added,
        crossed_as_sealed,
        adapters_inside,
        no_device_state_on_a_broker,
        uploads_are_masked,
        witnesses_sign_one_history,
        nothing_honest_is_refused,
        bounded_memory,
        learns,
    )
}
"""Every invariant by name."""
MOST = 5
"""Findings of one invariant that are kept."""


def check(outcome: Outcome) -> list[Finding]:
    """Everything that does not hold after a run."""
    left = RunRecords(outcome)
    findings = []
    for name, invariant in INVARIANTS.items():
        for number, detail in enumerate(invariant(left)):
            if number == MOST:
                break
            findings.append(Finding(name, detail))
    return findings


__all__ = ["INVARIANTS", "Finding", "RunRecords", "check"]
