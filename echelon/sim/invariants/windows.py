"""What must hold of windows: each ends once, counts once, and is over enough devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from echelon.messages.boundary import (
    Cohort,
    Void,
    Window,
)
from echelon.messages.exchange import Commit, Delta
from echelon.sim.left import RunRecords, sums_of


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
    merged = [
        (merged.boundary, merged.seq)
        for message in left.exchange["global"]
        if isinstance(message, Commit)
        for merged in message.merged
    ]
    for index, boundary in enumerate(left.boundaries):
        for key, times in Counter(merged).items():
            if times > 1:
                yield f"delta {key} was merged {times} times"
        seqs = [seq for number, seq in set(merged) if number == index]
        yield from _covered_once(left, boundary, seqs)


def _covered_once(left: RunRecords, boundary: str, merged: list[int]) -> Iterator[str]:
    """A boundary's merged deltas were sent, and hold closed windows, each once."""
    closed = {window.window for window in left.messages(boundary, "control", Window)}
    deltas = {
        message.seq: message for message in left.exchange[f"delta.{boundary}"] if isinstance(message, Delta)
    }
    for seq in merged:
        if seq not in deltas:
            yield f"{boundary}: delta {seq} was merged and never sent"
    covered = Counter(window.window for seq in merged if seq in deltas for window in deltas[seq].windows)
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
