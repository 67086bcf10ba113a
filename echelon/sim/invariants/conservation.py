"""What must hold of what windows moved: it is in the deltas and in the adapters, all of it and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from echelon.laws.delta_form import DeltaForm
from echelon.messages.adapter import F64
from echelon.messages.boundary import (
    Adopt,
    Model,
    SealedDelta,
    Sealing,
    Window,
)
from echelon.messages.exchange import Commit, DeltaCodec
from echelon.messages.manifest import MILLION
from echelon.sim.left import RunRecords, is_closing, moved_by, sums_of


def nothing_is_lost_or_added(left: RunRecords) -> Iterator[str]:
    """What windows moved is in the deltas, all of it and nothing else, to the rounding of the newest delta.

    The updates under the masks are added up as they are, window by window; each sealed delta is subtracted. What
    remains may never exceed half a unit of that delta's grid, and of a sparse delta what there was before it (and the
    rounding of the masked integers).
    """
    secure = left.outcome.manifest.secure
    dim = left.outcome.initial.size
    form = DeltaForm.of(left.outcome.manifest.exchange, dim)
    grain = 2.0**-secure.scale_bits
    for boundary in left.boundaries:
        means: dict[int, tuple[F64, float]] = {}
        for window, n, uploads in sums_of(left, boundary):
            total = moved_by(left, boundary, window, uploads)
            factor = secure.weight_max / (secure.staleness[0] * n)
            means[window.window] = (total * factor, 2 * len(uploads) * grain * float(np.max(factor)))
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
                    value = form.decode(payload, delta.exponent)
                    before, remainder = remainder, remainder - value
                    allowed = _may_remain(form, before, delta.exponent)
                    over = np.abs(remainder) - allowed
                    if over.max() > 2 * slack:
                        worst = int(over.argmax())
                        yield (
                            f"{boundary}: after delta {delta.seq} {remainder[worst]:.3g} remain of coordinate {worst}, "
                            f"at most {allowed[worst]:.3g} by its codec and {slack:.3g} of masking may"
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


def adapters_inside(left: RunRecords) -> Iterator[str]:
    """Every version of the boundary adapter is anchor + κ·pending deltas + remainder, to the rounding of float32
    and of the masked integers.

    κ is 1 unless outer steps are eager. Records that lead to a version stand before the next version's.
    """
    secure = left.outcome.manifest.secure
    share = (left.outcome.manifest.exchange.eager_ppm or MILLION) / MILLION
    dim = left.outcome.initial.size
    form = DeltaForm.of(left.outcome.manifest.exchange, dim)
    anchors = _anchors(left)
    for boundary in left.boundaries:
        means, rounded = {}, 0.0
        for window, n, uploads in sums_of(left, boundary):
            total = moved_by(left, boundary, window, uploads)
            factor = secure.weight_max / (secure.staleness[0] * n)
            means[window.window] = total * factor
            rounded += 2 * len(uploads) * 2.0**-secure.scale_bits * float(np.max(factor))
        payloads = left.payloads(boundary, "model")
        models = {model.version: model for model in left.messages(boundary, "model", Model)}
        moved, commit = np.zeros(dim), 0
        merged: dict[int, F64] = {}
        deltas = {delta.seq: delta for delta in left.messages(boundary, "delta", SealedDelta)}
        inside = left.payloads(boundary, "delta")
        versions: dict[int, F64] = {}
        pending: dict[int, F64] = {}
        newest = 0
        for one in left.said(boundary, "control"):
            match one.message:
                case Window():
                    moved, newest = moved + means[one.message.window], one.message.version
                case Sealing() if one.message.seq in deltas:
                    delta = deltas[one.message.seq]
                    payload = inside.get(delta.payload.sha256)
                    if payload is not None:
                        merged[delta.seq] = pending[delta.seq] = form.decode(payload, delta.exponent)
                case Sealing() if share != 1.0:
                    versions.pop(newest, None)
                    break  # it was never proposed, so nobody knows what it holds
                case Adopt():
                    commit, newest = one.message.commit, one.message.version
                    for seq in (*one.message.merged, *one.message.dropped):
                        if seq in merged:
                            moved = moved - merged[seq]
                    for seq in (*one.message.merged, *one.message.dropped, *one.message.returned):
                        pending.pop(seq, None)
                case _:
                    continue
            versions[newest] = _at(anchors, commit) + moved - (1.0 - share) * sum(pending.values())
        for version, expected in versions.items():
            model = models.get(version)
            payload = None if model is None else payloads.get(model.payload.sha256)
            if payload is None:
                continue
            theta = np.frombuffer(payload[: 4 * dim], "<f4").astype(np.float64)
            worst = float(np.abs(theta - expected).max())
            if worst > rounded + 1e-3 * (1.0 + float(np.abs(expected).max())):
                yield f"{boundary}: version {version} is off by {worst:.3g} from what its windows add up to"
                break


def _may_remain(form: DeltaForm, before: F64, exponent: int) -> F64:
    """What a delta may leave of each coordinate: half a unit of its grid; a sparse one no more than there was."""
    if form.codec is DeltaCodec.SPARSE:
        return np.abs(before)
    return np.full(before.size, 0.5 * math.ldexp(1.0, exponent))


def _anchors(left: RunRecords) -> dict[int, F64]:
    payloads = left.payloads("exchange", "global")
    for boundary in left.boundaries:  # adapters of relayed commits stand inside alone
        payloads |= left.payloads(boundary, "global")
    found = {0: left.outcome.initial.astype(np.float64)}
    for message in left.exchange["global"]:
        if isinstance(message, Commit) and message.payload.sha256 in payloads:
            payload = payloads[message.payload.sha256]
            found[message.commit] = np.frombuffer(payload, "<f4").astype(np.float64)
    return found


def _at(anchors: dict[int, F64], commit: int) -> F64:
    return anchors[commit]
