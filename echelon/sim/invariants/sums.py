"""What must hold of versions and of sums: what is trained from was derived, and what is released is over enough.

With the rules of `echelon.sim.invariants`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from echelon.laws.blocks import block_ranges
from echelon.laws.update_encoding import codec_of
from echelon.messages.adapter import F64, rank_rows
from echelon.messages.boundary import Cohort, Derived, Masked, Version
from echelon.messages.envelope import Envelope
from echelon.messages.handshake import Included
from echelon.messages.manifest import BILLION, MILLION, SecureTerms
from echelon.messages.split import EdgePart
from echelon.sim.left import RunRecords, is_closing, parts_of, ranks_of, sums_of
from echelon.sim.outcome import MaskedUpload


def versions_are_derived(left: RunRecords) -> Iterator[str]:
    """Each version that `control` names is derived by the gate, with its digest; no job and no cohort is on another."""
    for boundary in left.boundaries:
        derived = {one.version: one.sha256 for one in left.messages(boundary, "versions", Derived)}
        named = {one.version: one.sha256 for one in left.messages(boundary, "control", Version)}
        for version, sha256 in derived.items():
            if version not in named:
                yield f"{boundary}: the gate derived version {version}, which nobody named"
            elif named[version] != sha256:
                yield f"{boundary}: version {version} was derived as another adapter than it is said to be"
        # The gate may end, once the run is closed, before what stands behind.
        missing = sorted(version for version in named if version not in derived)
        if left.outcome.closed and missing and not is_closing(left):
            yield f"{boundary}: versions {missing} were never derived"
        elif derived and any(version < max(derived) for version in missing):
            yield f"{boundary}: of versions {missing} some were passed over by the gate"
        yield from _before_derived(left, boundary)


def _before_derived(left: RunRecords, boundary: str) -> Iterator[str]:
    """Jobs and uploads on versions that had not been derived when they were begun and made."""
    places: dict[tuple[int, bytes], int] = {}
    for place, record in enumerate(left.outcome.topics[boundary]["versions"]):
        message = Derived.decode(Envelope.open(record.value).body)
        places.setdefault((message.version, message.sha256), place)
    for job in left.outcome.started:
        if job.boundary == boundary and places.get((job.version, job.sha256), job.derived) >= job.derived:
            yield f"{boundary}: {job.device} trained from version {job.version} before it was derived"
    cohorts = {cohort.window: cohort for cohort in left.messages(boundary, "control", Cohort)}
    for masked in left.messages(boundary, "masked", Masked):
        upload = left.outcome.uploads.get(masked.payload.sha256)
        if upload is None:
            continue
        for base in cohorts[upload.window].bases:
            if places.get((base.version, base.sha256), upload.derived) >= upload.derived:
                yield f"{boundary}: {upload.device} masked on version {base.version} before it was derived"


def every_sum_holds_the_floor(left: RunRecords) -> Iterator[str]:
    """What only some of a window add to is over k_min + c of them, or over nobody: evaluations, and single blocks."""
    secure = left.outcome.manifest.secure
    floor = secure.k_min + secure.colluding
    blocks = block_ranges(left.outcome.manifest.adapter_layout()) if left.outcome.manifest.split else {}
    for boundary in left.boundaries:
        for window, _, uploads in sums_of(left, boundary):
            where = f"{boundary}: window {window.window}"
            known = [upload for upload in uploads if isinstance(upload, MaskedUpload)]
            evaluated = sum(upload.evaluated for upload in known)
            if 0 < evaluated < floor:
                yield f"{where} has evaluations of {evaluated} devices, the floor is {floor}"
            if bool(window.summary.eval_tokens) != bool(evaluated):
                yield f"{where} has evaluations of {evaluated} devices, and says otherwise"
            for block, places in blocks.items():
                movers = sum(any(upload.scaled[place].any() for place in places) for upload in known)
                if 0 < movers < floor:
                    yield f"{where}: block {block} is of {movers} devices, the floor is {floor}"


def rank_blocks_are_of_enough(left: RunRecords) -> Iterator[str]:
    """Rows that devices of some rank alone train are in a sum of enough of them, who hide each other; or of none."""
    manifest = left.outcome.manifest
    blocks, ranks = manifest.rank_blocks, ranks_of(left)
    if not blocks:
        return
    rows = rank_rows(manifest.adapter_layout(), blocks[-1])
    for boundary in left.boundaries:
        for window, _, uploads in sums_of(left, boundary):
            where = f"{boundary}: window {window.window}"
            known = [upload for upload in uploads if isinstance(upload, MaskedUpload)]
            for upload in known:
                if upload.scaled[rows >= ranks[upload.device]].any():
                    yield f"{where}: {upload.device} moved rows beyond its rank {ranks[upload.device]}"
            for number, (start, end) in enumerate(pairwise(blocks)):
                training = sum(ranks[upload.device] > start for upload in known)
                place = (rows >= start) & (rows < end)
                wrong = _wrong_in(known, place, manifest.secure, window.summary.block_heads[number], training)
                if wrong:
                    yield f"{where}: rows {start} to {end - 1} {wrong}"


def _wrong_in(
    uploads: list[MaskedUpload], place: NDArray[np.bool_], secure: SecureTerms, heads: int, training: int
) -> str:
    """What is wrong with the sum of some rows, over so many devices as is said; empty if nothing is."""
    movers = [upload for upload in uploads if upload.scaled[place].any()]
    if heads not in (0, training) or (movers and not heads):
        return f"are said to be of {heads} devices: {training} train them, {len(movers)} moved them"
    if 0 < heads < secure.k_min + secure.colluding:
        return f"are of {heads} devices, below the floor"
    shares = [_share(upload, place, secure) for upload in movers]
    if heads and len(shares) == heads and not _hidden(shares, secure.k_min, secure.colluding):
        return f"are of shares {shares}: one is not hidden among the others"
    return ""


def _share(upload: MaskedUpload, place: NDArray[np.bool_], secure: SecureTerms) -> float:
    """What an update counts with in some rows, as a whole number over W; 1 where it has nothing there to count."""
    clipped = codec_of(secure).clip(upload.update)[place].astype(np.float64)
    at = int(np.abs(clipped).argmax())
    if not clipped[at]:
        return 1.0
    return round(float(upload.scaled[place][at] / clipped[at]) * secure.weight_max) / secure.weight_max


def parts_are_of_enough(left: RunRecords) -> Iterator[str]:
    """No edge says a part over fewer devices or less weight than a window may be over, or over several versions."""
    secure = left.outcome.manifest.secure
    for boundary in left.boundaries:
        cohorts = {cohort.window: cohort for cohort in left.messages(boundary, "control", Cohort)}
        included = {one.window: one for one in left.messages(boundary, "control", Included)}
        for one in left.said(boundary, "parts"):
            part = one.message
            assert isinstance(part, EdgePart)
            where = f"{boundary}: window {part.window}: the part of {one.sender}"
            members = {member.device: member for member in cohorts[part.window].members}
            if not set(part.devices) <= {entry.device for entry in included[part.window].entries}:
                yield f"{where} counts who is not included"
                continue
            counted = [members[device] for device in part.devices]
            weights = [member.weight for member in counted]
            if len(weights) < secure.k_min + secure.colluding:
                yield f"{where} is over {len(weights)} devices, the floor is {secure.k_min + secure.colluding}"
            elif not _hidden([float(weight) for weight in weights], secure.k_min, secure.colluding):
                yield f"{where} is of weights {weights}: one is not hidden among the others"
            if len({(member.base_version, member.edge) for member in counted}) > 1:
                yield f"{where} is over several versions or edges"


def _hidden(weights: list[float], k_min: int, colluding: int) -> bool:
    """Whether the largest weight is at most a k_min-th of what is left without the c largest of the others."""
    ordered = sorted(weights, reverse=True)
    return ordered[0] + sum(ordered[colluding + 1 :]) >= k_min * ordered[0]


def parts_add_up(left: RunRecords) -> Iterator[str]:
    """What a window takes of an edge is what its devices' middles were, each job once."""
    for boundary in left.boundaries:
        jobs: Counter[tuple[str, int, int]] = Counter()
        for window, _, uploads in sums_of(left, boundary):
            known = {upload.device: upload for upload in uploads if isinstance(upload, MaskedUpload)}
            for edge, part, total in parts_of(left, boundary, window):
                where = f"{boundary}: window {window.window}: the part of {edge}"
                counted = [known[device] for device in part.devices if device in known]
                jobs.update((one.device, one.memory, job) for one in counted for job in one.jobs)
                expected = _middles(left, counted)
                if expected is None:
                    yield f"{where} counts a job that was never trained"
                    continue
                worst = float(np.abs(total - expected).max())
                slack = (2 * len(counted) + 1) * 2.0**-left.outcome.manifest.secure.scale_bits + _rounded(
                    left, counted
                )
                if worst > slack:
                    yield f"{where} is off by {worst:.3g}, at most {slack:.3g} of rounding may be"
        for (device, _, job), times in jobs.items():
            if times > 1:
                yield f"{boundary}: job {job} of {device} is in {times} parts"


def _rounded(left: RunRecords, uploads: list[MaskedUpload]) -> float:
    """What vectors that were clipped in float32 may differ by from those clipped in float64."""
    clip = left.outcome.manifest.secure.clip_micro / MILLION
    norms = [float(np.linalg.norm(one.middle)) for one in uploads if one.middle is not None]
    return sum(one.share * clip * 2.0**-23 for one, norm in zip(uploads, norms, strict=True) if norm > clip)


def _middles(left: RunRecords, uploads: list[MaskedUpload]) -> F64 | None:
    """What these devices' middles add up to, float64[d]; blocks that too few of them move are left out."""
    secure = left.outcome.manifest.secure
    moved: list[F64] = []
    for upload in uploads:
        if upload.middle is None:
            return None
        moved.append(upload.middle.astype(np.float64))
    for places in block_ranges(left.outcome.manifest.adapter_layout()).values():
        movers = [one for one, vector in enumerate(moved) if any(vector[place].any() for place in places)]
        shares = [uploads[one].share for one in movers]
        enough = len(shares) >= secure.k_min + secure.colluding
        if shares and not (enough and _hidden(shares, secure.k_min, secure.colluding)):
            for one in movers:
                for place in places:
                    moved[one][place] = 0.0
    total = np.zeros(left.outcome.initial.size)
    for upload, vector in zip(uploads, moved, strict=True):
        if secure.coordinate_nano is not None:
            np.clip(vector, -secure.coordinate_nano / BILLION, secure.coordinate_nano / BILLION, out=vector)
        norm = float(np.linalg.norm(vector))
        total += vector * (upload.share * min(1.0, secure.clip_micro / MILLION / norm if norm else 1.0))
    return total
