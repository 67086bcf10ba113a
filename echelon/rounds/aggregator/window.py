"""Who is in a window: of the devices that are ready, those whose offers fit together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from echelon.laws.cohort import threshold_of, weight_cap_of
from echelon.messages.boundary import MAX_COHORT, Base, Cohort, Member, Rejected, WindowOpen
from echelon.messages.manifest import SecureTerms
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.attendance import CheckIn
from echelon.rounds.aggregator.edge_assignment import admitted
from echelon.rounds.shards import disjoint


@dataclass(frozen=True, slots=True)
class FreshOffer:
    """A device's offer, and its weight n·s(τ) before the cap; the weight is positive."""

    device: DeviceId
    check: CheckIn
    weight: int


@dataclass(frozen=True, slots=True)
class Selection:
    """What becomes of the devices that are ready.

    Attributes:
        chosen: offers that may be in one cohort, in turn; fewer than the floor where no more fit together.
        rejected: offers that no cohort will take.
        present: devices that were there for this window, chosen or not.
    """

    chosen: tuple[FreshOffer, ...]
    rejected: tuple[Rejected, ...]
    present: frozenset[DeviceId]


def select(
    ready: Sequence[tuple[DeviceId, CheckIn]],
    secure: SecureTerms,
    version: int,
    *,
    barred: Collection[DeviceId] = (),
    lost: Collection[str] = (),
    overdue: bool = False,
) -> Selection:
    """Choose the cohort of a window.

    Args:
        ready: devices and their check-ins, in turn.
        secure: floor, largest cohort and weights.
        version: of the boundary adapter.
        barred: devices that are kept out.
        lost: edges that are taken for lost: jobs with them are not waited for.
        overdue: whether the window's deadline is over.

    Returns:
        The selection.
    """
    fresh: list[FreshOffer] = []
    rejected: list[Rejected] = []
    for device, check in ready:
        weight = secure.weight(check.n, version - check.base_version)
        if weight > 0 and check.edge not in lost and device not in barred:
            fresh.append(FreshOffer(device, check, weight))
        elif len(rejected) < MAX_COHORT:
            rejected.append(Rejected(device=device, offer=check.offer))
    present = frozenset(one.device for one in fresh)
    fresh = _with_edges(fresh, secure.floor, overdue=overdue)
    # Offers on one data shard exclude each other; those that are left out stay ready for the next window.
    fitting = disjoint([one.check.shards for one in fresh], secure.floor)
    chosen = [fresh[place] for place in fitting][: secure.cohort_max]
    chosen = _with_edges(chosen, secure.floor, overdue=overdue)
    return Selection(tuple(chosen), tuple(rejected), present)


def cohort_of(
    selection: Selection, opened: WindowOpen, secure: SecureTerms, *, bases: Sequence[Base], inputs: int
) -> Cohort:
    """The decision record of a selection.

    Args:
        selection: at least as many as the floor are chosen.
        opened: the window, the version and its commit.
        secure: caps of weights, and thresholds.
        bases: digests of the published versions.
        inputs: how far `checkin` was read.

    Returns:
        The cohort; its members are sorted by name.
    """
    chosen = selection.chosen
    cap = weight_cap_of([(one.weight, one.check.edge, one.check.base_version) for one in chosen], secure)
    used = {opened.version, *(one.check.base_version for one in chosen)}
    return Cohort(
        window=opened.window,
        version=opened.version,
        commit=opened.commit,
        members=tuple(
            Member(
                device=one.device,
                offer=one.check.offer,
                n=one.check.n,
                base_version=one.check.base_version,
                weight=min(one.weight, cap),
                shards=one.check.shards,
                edge=one.check.edge,
                jobs=one.check.jobs,
            )
            for one in sorted(chosen, key=lambda one: one.device)
        ),
        rejected=selection.rejected,
        bases=tuple(base for base in bases if base.version in used),
        threshold=threshold_of(len(chosen), secure),
        inputs=inputs,
    )


def _with_edges(offers: list[FreshOffer], floor: int, *, overdue: bool) -> list[FreshOffer]:
    """Those whose edges can release their middles, as far as that can be waited for."""
    edges = [one.check.edge for one in offers]
    bases = [one.check.base_version for one in offers]
    return [offers[place] for place in admitted(edges, floor, bases, overdue=overdue)]
