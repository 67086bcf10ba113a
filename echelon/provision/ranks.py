"""Ranks of devices, before anything starts: the sums of their blocks hide everybody, and rosters say what is meant."""

from __future__ import annotations

from itertools import pairwise

from echelon.config.run import RunSettings
from echelon.errors import CodecError, ConfigError
from echelon.laws.cohort import threshold_of
from echelon.laws.rank_blocks import index_in
from echelon.messages.manifest import RunManifest, SecureTerms
from echelon.provision.device_ranks import device_ranks
from echelon.provision.identities import Identities
from echelon.secagg.floors import partial_sum_holds, share_lost


def check_rank_sums(settings: RunSettings, terms: SecureTerms) -> None:
    """Every rank block is trained, and where devices of a boundary do so its sum may be released.

    Raises:
        ConfigError: nobody trains some rows, or in one boundary so few devices that nobody could ever add to them, even
            if all of its devices are in a window.
    """
    blocks = settings.adapter.rank_blocks
    known = [rank for boundary in settings.boundaries for rank in device_ranks(settings, boundary).values()]
    if blocks and max(known) < blocks[-1]:
        raise ConfigError(
            f"no device has rank {blocks[-1]}, the last of adapter.rank_blocks: rows beyond the others' ranks would "
            "never be trained. Lower adapter.rank, or give devices that rank"
        )
    for boundary in settings.boundaries if blocks else ():
        ranks = device_ranks(settings, boundary)
        count = min(len(ranks), terms.cohort_max)
        for start, rank in pairwise(blocks):
            training = min(count, sum(mine >= rank for mine in ranks.values()))
            needed = fewest_training(count, terms)
            if 0 < training < needed:
                raise ConfigError(
                    f"boundary {boundary.name!r} has {training} of {count} devices of rank {rank} or more, and "
                    f"{needed} are needed: the sum of rows {start} to {rank - 1} is over those alone, and with fewer "
                    f"it would not hide one of them once some drop out. Give more devices rank {rank}, or none"
                )


def fewest_training(count: int, terms: SecureTerms) -> int:
    """How many of a cohort must have a rank, so that rows of that rank alone have a sum that may be released.

    Args:
        count: devices of the cohort; with all of them of that rank, the cohort's own floor is enough.
        terms: of secure aggregation.
    """
    for training in range(terms.floor, count):
        lost = share_lost(
            training,
            count,
            threshold=threshold_of(count, terms),
            degree=terms.degree(count),
            k_min=terms.k_min,
            colluding=terms.colluding,
        )
        if partial_sum_holds(training, lost, terms.k_min, terms.colluding):
            return training
    return count


def check_rank_terms(settings: RunSettings, manifest: RunManifest, identities: Identities) -> None:
    """The layers of the adapter have rows of the rank, and rosters give devices the ranks of the run file.

    Args:
        settings: the run file.
        manifest: the terms that were made of it.
        identities: everybody's keys, and the rosters.

    Raises:
        ConfigError: they do not.
    """
    if not manifest.rank_blocks:
        return
    try:
        index_in(manifest)
    except CodecError as error:
        raise ConfigError(
            f"adapter.rank_blocks: {error}. Name other layers in adapter.targets, or leave rank_blocks out"
        ) from error
    for boundary in settings.boundaries:
        roster = identities.boundaries[boundary.name].roster
        for device, rank in device_ranks(settings, boundary).items():
            if roster.entry(device).rank != rank:
                raise ConfigError(
                    f"the roster of boundary {boundary.name!r} gives {device!r} the rank {roster.entry(device).rank}, "
                    f"and the run file {rank}: make keys and rosters anew with this run file, or set the rank back"
                )
