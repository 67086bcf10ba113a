"""From a cohort to the context of its secure aggregation, and from its sum to what the window contributes.

Devices, aggregator and gate run this same code: each holds the aggregator's cohort against the signed
manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.ledger import WindowMean
from echelon.laws.metrics import released
from echelon.laws.rank_blocks import reach_of
from echelon.laws.update_encoding import NORM_UNIT, codec_of
from echelon.laws.window_mean import window_mean
from echelon.messages.boundary import Cohort
from echelon.messages.boundary import Member as CohortMember
from echelon.messages.exchange import MAX_WINDOW_TOKENS, WindowSummary
from echelon.messages.manifest import MILLION, RunManifest, SecureTerms
from echelon.messages.split import EdgePart
from echelon.messages.wire import DeviceId, pack
from echelon.secagg.context import Context, ContextMember, ring_threshold, threshold
from echelon.secagg.floors import weight_cap, weight_holds
from echelon.secagg.graph import Ring
from echelon.secagg.prg import RingVector
from echelon.secagg.ring import centred, limbs, ring_dtype, unpack_sum
from echelon.secagg.roster import Roster, WindowLeaf, bases_root, roster_root
from echelon.secagg.unmasking import SumResult

_BLOCK = 1 << 16
"""Coordinates that are added up at a time."""

AUX = ("n", "weight", "norm2", "tokens", "loss", "loss_tokens", "eval_loss", "eval_tokens")
"""The integers that travel with each update, in their order; units as in `WindowSummary`. Behind them are two for each
metric of the manifest."""
MOST = (1 << 63) - 1
"""Largest integer of a summary."""
CHECKED = ("n", "weight")
"""Those of `AUX` that the cohort says already: their sums are held against it."""


def threshold_of(n: int, secure: SecureTerms) -> int:
    """t for a cohort of n devices: among all of them, or on a ring among a device and its neighbours."""
    degree = secure.degree(n)
    return ring_threshold(degree, secure.colluding) if degree else threshold(n, secure.colluding)


def weight_cap_of(offers: Sequence[tuple[int, str, int]], secure: SecureTerms) -> int:
    """The cap on every weight of a cohort, which all parties derive from its members.

    What hides one device among all has to hide it in its edge's part, too: the smallest of the caps of the whole cohort
    and of those devices of each edge that trained from one version, where they are enough for a part.

    Args:
        offers: for each member its weight by the table, n·s(τ), its edge ("" for none) and its base version.
        secure: k_min and c.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for weight, edge, base in offers:
        if edge:
            groups.setdefault((edge, base), []).append(weight)
    parts = [weights for weights in groups.values() if len(weights) >= secure.floor]
    sums = [[weight for weight, _, _ in offers], *parts]
    return min(weight_cap(weights, secure.k_min, secure.colluding) for weights in sums)


def limbs_of(manifest: RunManifest) -> int:
    """Ring coordinates of the integers that travel with each update."""
    return limbs(manifest.secure.ring_bits) * (len(AUX) + 2 * len(manifest.metrics))


def vector_length(dim: int, manifest: RunManifest) -> int:
    """Ring coordinates of a masked update of `dim` parameters, the limbs of its integers included."""
    return dim + limbs_of(manifest)


def upload_length(dim: int, manifest: RunManifest) -> int:
    """Bytes of a masked update of `dim` parameters."""
    return ring_dtype(manifest.secure.ring_bits).itemsize * vector_length(dim, manifest)


def ring_vector(payload: bytes, ring_bits: int) -> RingVector:
    """The bytes of a masked upload as ring coordinates; the context says how many there must be.

    Args:
        payload: little-endian coordinates.
        ring_bits: bits of a coordinate.

    Returns:
        uint32[len / 4], or uint16[len / 2] on the ring of 16 bits.

    Raises:
        ProtocolError: not a whole number of coordinates.
    """
    dtype = ring_dtype(ring_bits)
    if len(payload) % dtype.itemsize:
        raise ProtocolError(
            f"a masked upload of {len(payload)} bytes is no vector of {ring_bits}-bit coordinates"
        )
    return np.frombuffer(payload, dtype.newbyteorder("<"))


@dataclass(frozen=True, slots=True)
class Part:
    """What one edge adds to a window.

    Attributes:
        edge: its name.
        devices: whose middle updates it adds up.
        norm2: Σ w‖Δ‖² of those, in units of 2**-32.
        total: int32[d].
        sha256: of its bytes on the wire.
    """

    edge: str
    devices: tuple[str, ...]
    norm2: int
    total: NDArray[np.int32]
    sha256: bytes


def releasable(weights: Sequence[int], secure: SecureTerms) -> bool:
    """Whether an edge may add devices of these weights up: the floors of a cohort, on heads and on weight."""
    return len(weights) >= secure.floor and weight_holds(weights, secure.k_min, secure.colluding)


def one_base(members: Sequence[CohortMember], secure: SecureTerms) -> tuple[CohortMember, ...]:
    """Those of an edge's members that its part is over: of one base version, and releasable; () if there are none.

    Middles from different versions do not hide each other: who chooses the versions could tell them apart. Of several
    versions the one that most trained from counts, of equals the older.
    """
    groups: dict[int, list[CohortMember]] = {}
    for member in members:
        groups.setdefault(member.base_version, []).append(member)
    fit = [group for group in groups.values() if releasable([member.weight for member in group], secure)]
    if not fit:
        return ()
    best = min(fit, key=lambda group: (-len(group), group[0].base_version))
    return tuple(best)


def edge_groups(cohort: Cohort, included: Collection[str], secure: SecureTerms) -> dict[str, tuple[str, ...]]:
    """The included devices of each edge that may release its part, by edge in order of name.

    Args:
        cohort: of the window; its members name their edges.
        included: devices whose masked updates are in the sum.
        secure: the manifest's terms: floor and caps.
    """
    groups: dict[str, list[CohortMember]] = {}
    for member in cohort.members:
        if member.edge and member.device in included:
            groups.setdefault(member.edge, []).append(member)
    of_one_base = {edge: one_base(group, secure) for edge, group in sorted(groups.items())}
    return {edge: tuple(member.device for member in group) for edge, group in of_one_base.items() if group}


def norm2_bound(weights: Sequence[int], secure: SecureTerms) -> int:
    """The most that Σ w‖Δ‖² of clipped updates can be, in units of 2**-32.

    Σw · clip², and 2**-20 of it more: what a vector of float32 that was shortened to the bound may pass it by.
    """
    exact = sum(weights) * secure.clip_micro**2 * NORM_UNIT
    return exact // MILLION**2 + (exact >> 20) // MILLION**2 + len(weights)


def read_part(
    edge: str,
    message: EdgePart,
    payload: bytes,
    *,
    cohort: Cohort,
    included: Collection[str],
    manifest: RunManifest,
    dim: int,
) -> Part:
    """Hold an edge's part against the cohort and the included set.

    Args:
        edge: name of the edge that signed it.
        message: what the edge says of its sum: window, devices, norm.
        payload: the sum's integers, little-endian int32[d].
        cohort: of the window.
        included: devices whose masked updates are in the sum.
        manifest: of the run, for its terms of secure aggregation.
        dim: length d of the adapter.

    Raises:
        ProtocolError: it counts a device that is not included, or another edge's, or too few, or devices that trained
            from different versions; or its integers are not d, or larger than so many clipped updates can add up to.
    """
    where = f"window {cohort.window}: the part of {edge}"
    members = {member.device: member for member in cohort.members}
    if message.window != cohort.window:
        raise ProtocolError(f"{where} is of window {message.window}")
    for device in message.devices:
        if device not in members or members[device].edge != edge or device not in included:
            raise ProtocolError(f"{where} counts {device}, which is not included with that edge")
    weights = [members[device].weight for device in message.devices]
    if not releasable(weights, manifest.secure):
        raise ProtocolError(f"{where} is over {len(message.devices)} devices, below the floor")
    versions = sorted({members[device].base_version for device in message.devices})
    if len(versions) > 1:
        raise ProtocolError(f"{where} counts devices that trained from the versions {versions[:8]}")
    if message.norm2 > norm2_bound(weights, manifest.secure):
        raise ProtocolError(f"{where} has a larger norm than clipped updates of its devices can have")
    if len(payload) != 4 * dim:
        raise ProtocolError(f"{where} has {len(payload)} bytes, by the layout it has {4 * dim}")
    total = np.frombuffer(payload, "<i4")
    largest = len(message.devices) * codec_of(manifest.secure).largest
    if total.size and max(int(total.max()), -int(total.min())) > largest:
        raise ProtocolError(f"{where} is larger than clipped updates of its devices can add up to")
    return Part(edge, message.devices, message.norm2, total, message.payload.sha256)


def context_of(cohort: Cohort, manifest: RunManifest, dim: int, roster: Roster | None = None) -> Context:
    """The context of a cohort's window.

    Args:
        cohort: as the aggregator announced it, checked by nobody yet.
        manifest: of the run.
        dim: length d of the adapter.
        roster: the boundary's, already verified, which says the ranks of devices; needed in a run with rank blocks.

    Raises:
        ProtocolError: the cohort says what the manifest does not allow: weights, ages, sizes, threshold,
        floor; or two of its members trained one data shard.
    """
    secure = manifest.secure
    where = f"window {cohort.window}"
    if len(cohort.members) > secure.cohort_max:
        raise ProtocolError(
            f"{where}: {len(cohort.members)} devices, at most {secure.cohort_max} are allowed"
        )
    expected = threshold_of(len(cohort.members), secure)
    if cohort.threshold != expected:
        raise ProtocolError(f"{where}: threshold {cohort.threshold}, it must be {expected}")
    _check_trained(cohort, manifest)
    _check_weights(cohort, secure)
    return Context(
        run=manifest.run_id,
        window=cohort.window,
        version=cohort.version,
        members=tuple(
            ContextMember(
                DeviceId(member.device),
                member.n,
                member.weight,
                member.base_version,
                reach_of(manifest, roster, member.device),
            )
            for member in cohort.members
        ),
        bases_root=bases_root((base.version, base.sha256) for base in cohort.bases),
        terms_sha256=hashlib.sha256(manifest.canonical()).digest(),
        threshold=cohort.threshold,
        k_min=secure.k_min,
        colluding=secure.colluding,
        weight_max=secure.weight_max,
        clip_micro=secure.clip_micro,
        scale_bits=secure.scale_bits,
        length=vector_length(dim, manifest),
        ring=ring_of(cohort, manifest),
        offers_sha256=offers_sha256(cohort),
        ring_bits=secure.ring_bits,
        rank_blocks=len(manifest.rank_blocks),
    )


def _check_trained(cohort: Cohort, manifest: RunManifest) -> None:
    """Edges and jobs go together, no shard was trained twice, and the bases are those that are needed."""
    where = f"window {cohort.window}"
    named: dict[int, str] = {}
    for member in cohort.members:
        if bool(member.edge) != bool(member.jobs) or (member.edge and not manifest.split):
            raise ProtocolError(
                f"{where}: {member.device} has edge {member.edge or 'none'} and {len(member.jobs)} jobs with it, in a "
                f"run that is {'split' if manifest.split else 'not split'}"
            )
        for shard in member.shards:
            if named.setdefault(shard, member.device) != member.device:
                raise ProtocolError(f"{where}: {named[shard]} and {member.device} both trained shard {shard}")
    versions = [base.version for base in cohort.bases]
    if versions != sorted({cohort.version, *(member.base_version for member in cohort.members)}):
        raise ProtocolError(
            f"{where}: its bases are the versions {versions[:8]}, not those that it is merged into and trained from"
        )


def _check_weights(cohort: Cohort, secure: SecureTerms) -> None:
    """Every weight is the one of the table, at most the cap by which the cohort holds the floor."""
    where = f"window {cohort.window}"
    tables = [secure.weight(member.n, cohort.version - member.base_version) for member in cohort.members]
    cap = weight_cap_of(
        [
            (table, member.edge, member.base_version)
            for table, member in zip(tables, cohort.members, strict=True)
        ],
        secure,
    )
    for member, table in zip(cohort.members, tables, strict=True):
        weight = min(table, cap)
        if not 1 <= member.n <= secure.n_max or table < 1:
            raise ProtocolError(
                f"{where}: {member.device} has n = {member.n} on version {member.base_version}, outside the terms"
            )
        if member.weight != weight or weight < 1:
            raise ProtocolError(
                f"{where}: {member.device} has weight {member.weight}, by table and cap it is {weight}"
            )


def offers_sha256(cohort: Cohort) -> bytes:
    """SHA-256 over what the members offered besides n and base version, 32 bytes: each signs it with its keys."""
    offers = [
        [member.offer, list(member.shards), member.edge, list(member.jobs)] for member in cohort.members
    ]
    return hashlib.sha256(pack(offers)).digest()


def ring_of(cohort: Cohort, manifest: RunManifest) -> Ring | None:
    """The ring of a cohort, in an order that follows from run, window and members; None where all mask with all."""
    degree = manifest.secure.degree(len(cohort.members))
    if not degree:
        return None
    names = tuple(DeviceId(member.device) for member in cohort.members)
    return _ring(names, degree, hashlib.sha256(pack([manifest.run_id, cohort.window, *names])).digest())


@lru_cache(8)
def _ring(names: tuple[DeviceId, ...], degree: int, seed: bytes) -> Ring:
    """Kept for the other devices of a process, which are in the same cohort."""
    return Ring.of(names, degree, seed)


def close_window(
    cohort: Cohort, result: SumResult, manifest: RunManifest, parts: Sequence[Part] = ()
) -> tuple[WindowSummary, WindowMean]:
    """What a window contributes: its summary, and the damped mean of its updates, of d coordinates.

    `parts` are what edges add: the coordinates that devices left at 0.

    Args:
        cohort: of the window.
        result: the unmasked sum, whose devices are included, and what they uploaded.
        manifest: of the run.
        parts: sums of edges, each checked by `read_part`.

    Raises:
        ProtocolError: Σn or Σw in the sum is not that of the included devices, or a sum passes 2**63 - 1.
    """
    members = {member.device: member for member in cohort.members}
    included = [members[device] for device in result.included]
    total, sums, metrics = _sums(cohort, result, manifest, parts)
    weight2 = sums["weight2"]
    found = window_mean(total, sums["weight"], included=included, over=result.over, manifest=manifest)
    bases = {base.version: base.sha256 for base in cohort.bases}
    root = roster_root(
        WindowLeaf(
            device=member.device,
            weight=member.weight,
            base_version=member.base_version,
            base_sha256=bases[member.base_version],
            upload_sha256=result.uploads[DeviceId(member.device)],
            signature=result.signatures.get(DeviceId(member.device), b""),
        )
        for member in included
    )
    summary = WindowSummary(
        window=cohort.window,
        heads=len(included),
        n=sums["n"],
        weight=sums["weight"],
        weight2=weight2,
        roster_root=root,
        norm2=sums["norm2"],
        mean2=found.mean2,
        tokens=sums["tokens"],
        loss=sums["loss"],
        loss_tokens=sums["loss_tokens"],
        eval_commit=cohort.commit,
        eval_loss=sums["eval_loss"],
        eval_tokens=sums["eval_tokens"],
        metrics=released(manifest.metrics, metrics, heads=len(included), evaluated=sums["eval_tokens"] > 0),
        block_heads=found.block_heads,
    )
    return summary, found.mean


def _sums(
    cohort: Cohort, result: SumResult, manifest: RunManifest, parts: Sequence[Part]
) -> tuple[NDArray[np.int32], dict[str, int], tuple[int, ...]]:
    """The integers of a window's sum, int32[d], its figures with Σw² of the included devices, and sums of metrics."""
    where = f"window {cohort.window}"
    members = {member.device: member for member in cohort.members}
    included = [members[device] for device in result.included]
    total, aux = unpack_sum(result.total, result.total.size - limbs_of(manifest))
    if parts:
        total = _with_parts(total, parts)
    sums = dict(zip(AUX, aux[: len(AUX)], strict=True))
    sums = {name: value if name in CHECKED else min(value, MOST) for name, value in sums.items()}
    sums["tokens"] = min(sums["tokens"], MAX_WINDOW_TOKENS)
    # What one device says of its norm hides in the sum: more than all can have is no reason to lose the window.
    weights = [member.weight for member in included]
    sums["norm2"] = min(sums["norm2"], norm2_bound(weights, manifest.secure))
    sums["norm2"] = min(sums["norm2"] + sum(part.norm2 for part in parts), MOST)
    expected = (sum(member.n for member in included), sum(member.weight for member in included))
    if (sums["n"], sums["weight"]) != expected:
        raise ProtocolError(
            f"{where}: the sums of n and w are {sums['n']} and {sums['weight']}, those of the included devices "
            f"{expected[0]} and {expected[1]}"
        )
    sums["weight2"] = sum(member.weight**2 for member in included)
    too_large = [name for name, value in sums.items() if value > MOST]
    if too_large:
        raise ProtocolError(f"{where}: the sum of {', '.join(too_large)} passes 2**63 - 1")
    return total, sums, aux[len(AUX) :]


def _with_parts(total: NDArray[np.int32], parts: Sequence[Part]) -> NDArray[np.int32]:
    """A sum and what edges add to it, as the ring reduces it: int32[d], a new array."""
    found = np.empty_like(total)
    for start in range(0, total.size, _BLOCK):
        at = slice(start, start + _BLOCK)
        block = total[at].astype(np.int64)
        for part in parts:
            block += part.total[at]
        found[at] = centred(block)
    return found
