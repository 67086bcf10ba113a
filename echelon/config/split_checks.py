"""What a boundary with edges must keep: one check for each sentence that a user may read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from echelon.config.boundary import BoundarySettings
from echelon.config.split import SplitSettings
from echelon.config.values import SPLIT_LIMIT

if TYPE_CHECKING:
    from echelon.config.run import RunSettings


def check_split(run: RunSettings, boundary: BoundarySettings, split: SplitSettings) -> None:
    """Check that a boundary's model can be trained in parts, and that its edges can serve its devices.

    Args:
        run: the run file.
        boundary: one of its boundaries.
        split: the boundary's settings of split training.

    Raises:
        ValueError: the first sentence that does not hold, and what to change.
    """
    where = f"boundary {boundary.name!r}: split"
    devices = [device.id for device in boundary.device_list()]
    splitting = sum(split.splits(device) for device in devices)
    if run.learner.kind != "lora":
        _check_stand_in_has_blocks(run, where)
        _check_stand_in_is_no_model(run, where, split)
        _check_stand_in_has_a_middle(run, where, split)
    _check_factors(run, where)
    _check_classes(where, split, devices)
    _check_cuts(where, split, devices)
    _check_edges_reach_the_floor(where, split, splitting, run.secure.floor)
    _check_edges_may_reach_the_floor(where, split, run.secure.floor)
    _check_edges_have_room(where, split, splitting)
    _check_assignment_fits(where, len(devices))


def _check_stand_in_has_blocks(run: RunSettings, where: str) -> None:
    blocks = run.learner.blocks
    if not blocks:
        raise ValueError(
            f"{where}: learner {run.learner.kind!r} has no blocks to split: give it some (learner.blocks), or "
            "take split out"
        )
    if blocks > run.learner.dim:
        raise ValueError(f"learner.blocks = {blocks} of a vector of {run.learner.dim} numbers: use fewer")


def _check_stand_in_is_no_model(run: RunSettings, where: str, split: SplitSettings) -> None:
    if split.probes or split.perturbation or any(one.profile is not None for one in split.classes):
        raise ValueError(
            f"{where}: probes, perturbation and profiles are of models, a {run.learner.kind} has none: leave "
            "them out"
        )


def _check_stand_in_has_a_middle(run: RunSettings, where: str, split: SplitSettings) -> None:
    for front, back in sorted(split.cuts):
        if front + back >= run.learner.blocks:
            raise ValueError(
                f"{where}: front {front} and back {back} leave no middle of learner.blocks = {run.learner.blocks}: "
                "lower them"
            )


def _check_factors(run: RunSettings, where: str) -> None:
    if run.adapter.factors != "both":
        raise ValueError(f"{where}: adapter.factors must be both; alternating ones are not split")
    if run.adapter.kind != "lora":
        raise ValueError(
            f"{where}: adapter.kind must be lora; parts of a model know no frozen bases and no parts of a device's own"
        )
    if run.adapter.dora:
        raise ValueError(f"{where}: adapter.dora must be false; the lengths of its layers are not split")
    if run.model.quantization is not None:
        raise ValueError(f"{where}: model.quantization must be left out; parts of a model are not quantised")
    if run.model.device_map is not None:
        raise ValueError(f"{where}: model.device_map must be left out; each part of a model is on one device")
    if run.compute.ranks > 1:
        raise ValueError(
            f"{where}: compute.ranks must be 1; parts of a model are trained by one process each"
        )
    if run.training.packing != "joined":
        raise ValueError(
            f"{where}: training.packing must be joined; parts of a model do not keep documents apart"
        )


def _check_classes(where: str, split: SplitSettings, devices: list[str]) -> None:
    strangers = sorted({device for one in split.classes for device in one.devices} - set(devices))
    if strangers:
        raise ValueError(f"{where}.classes names {strangers[0]!r}, which is no device of the boundary")


def _check_cuts(where: str, split: SplitSettings, devices: list[str]) -> None:
    for device in devices:
        front, back = split.cut_of(device)
        if front + back < 1:
            raise ValueError(
                f"{where}: front + back of {device} is 0; it must be at least 1, or the device would train nothing"
            )


def _check_edges_reach_the_floor(where: str, split: SplitSettings, splitting: int, floor: int) -> None:
    edges = len(split.edge_list())
    if splitting < edges * floor:
        raise ValueError(
            f"{where}: {splitting} devices on {edges} edges are fewer than secure.k_min + secure.colluding = "
            f"{floor} each, and an edge releases nothing below that: use fewer edges, more devices, or lower it"
        )


def _check_edges_may_reach_the_floor(where: str, split: SplitSettings, floor: int) -> None:
    for edge in split.edge_list():
        if edge.most is not None and edge.most < floor:
            raise ValueError(
                f"{where}: {edge.id} takes {edge.most} devices at most, and an edge releases nothing below "
                f"secure.k_min + secure.colluding = {floor}: raise `most`, or leave it out"
            )


def _check_edges_have_room(where: str, split: SplitSettings, splitting: int) -> None:
    limits = [edge.most for edge in split.edge_list()]
    if None not in limits and (room := sum(most or 0 for most in limits)) < splitting:
        raise ValueError(
            f"{where}: {splitting} devices need an edge, and the edges take {room} at most: raise `most` of one"
        )


def _check_assignment_fits(where: str, count: int) -> None:
    if count > SPLIT_LIMIT:
        raise ValueError(
            f"{where}: {count} devices; their assignment to edges is one record of at most {SPLIT_LIMIT}: "
            "divide the boundary"
        )
