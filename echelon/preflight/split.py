"""Split training against the model: cuts that leave a middle, encodings and rotations that fit its width."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from echelon.compute.blocks import BlockFloors
from echelon.compute.planning import planned
from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings
from echelon.config.split import SplitSettings
from echelon.elsa.families.registry import family_of
from echelon.errors import ConfigError
from echelon.preflight.findings import ModelFacts, RunFault
from echelon.training.fingerprint import probe_ids
from echelon.training.model import model_config
from echelon.training.split.cut import Cut
from echelon.training.split.link import Encoding
from echelon.training.split.perturb import MAX_RANK, check_rank


def check_parts(
    settings: RunSettings, model: ModelFacts, tokenizer: Any, faults: list[RunFault], warnings: list[str]
) -> None:
    """Look at everything of split training that depends on the model.

    Args:
        settings: the run file.
        model: its model.
        tokenizer: the model's; None where it could not be loaded, and then probes are not counted.
        faults: takes what cannot be.
        warnings: takes rotations that hide nothing, and blocks that devices train in vain.
    """
    if all(boundary.split is None for boundary in settings.boundaries):
        return
    try:
        family_of(model_config(settings.model).model_type)
        settings = planned(settings)
    except ConfigError as error:
        faults.append(RunFault("model", str(error)))
        return
    exposed: dict[int, list[str]] = defaultdict(list)
    for boundary in settings.boundaries:
        split = boundary.split
        if split is None:
            continue
        for sentence in _wrong(settings, boundary, split, model, tokenizer):
            faults.append(RunFault(f"boundary {boundary.name}", f"split: {sentence}"))
        warnings += _in_vain(settings, boundary, split, model.blocks)
        if 0 < split.perturbation < model.width:
            exposed[split.perturbation].append(boundary.name)
    for rank, names in exposed.items():
        warnings.append(_hides_nothing(rank, names, model.width))


def _wrong(
    settings: RunSettings, boundary: BoundarySettings, split: SplitSettings, model: ModelFacts, tokenizer: Any
) -> Iterator[str]:
    names = (device.id for device in boundary.device_list())
    for front, back in sorted({split.cut_of(name) for name in names if split.splits(name)}):
        try:
            Cut(front, back).middle(model.blocks)
        except ConfigError as error:
            yield f"{error}: change front or back"
    yield from _wrong_encodings(settings, split, model.width)
    if split.perturbation and tokenizer is not None:
        rows = sum(map(len, probe_ids(tokenizer, settings.training.sequence_length)))
        try:
            check_rank(split.perturbation, model.width, rows)
        except ConfigError as error:
            yield f"perturbation: {error}"


def _wrong_encodings(settings: RunSettings, split: SplitSettings, width: int) -> Iterator[str]:
    """What cannot encode a full micro-batch of the smallest kind."""
    training = settings.training
    micro = min(
        training.batch_size * training.accumulation, *(split.micro_of(name) for name in _of_classes(split))
    )
    for name in dict.fromkeys(split.encodings.streams):
        encoding = Encoding.of(name, width)
        try:
            for compressor in encoding.allowed if encoding.limit is None else ():
                compressor.size((micro, training.sequence_length, width))
        except ConfigError as error:
            yield f"encodings: {name}: {error}"


def _of_classes(split: SplitSettings) -> Iterator[str]:
    """A device of each class, and a name that is in none."""
    yield ""
    yield from (one.devices[0] for one in split.classes if not one.whole)


def _in_vain(
    settings: RunSettings, boundary: BoundarySettings, split: SplitSettings, blocks: int
) -> Iterator[str]:
    """Blocks that some devices hold or leave to edges, and that are too few for a sum of their own."""
    floors = BlockFloors.of(settings.secure, boundary, split)
    found = floors.in_vain(split, blocks)
    for holders, these in found.held.items():
        yield (
            f"boundary {boundary.name}: {holders} of {floors.devices} devices hold {_blocks(these)} themselves, and "
            f"nothing counts of what they train there: {floors.dropouts} may drop out of a window of {floors.window}, "
            f"and a sum is over {floors.floor} at least. Give all devices the same front and back, or let "
            f"{floors.floor + floors.dropouts} hold it (docs/elsa-protocol.md)"
        )
    for leaving, these in found.left.items():
        yield (
            f"boundary {boundary.name}: {leaving} of {floors.devices} devices leave {_blocks(these)} to "
            f"{_edges(leaving, floors.edges)}, and nothing counts of what is trained there for them: an edge's sum is "
            f"over {floors.floor} at least. Give all devices the same front and back, or take fewer edges "
            "(docs/elsa-protocol.md)"
        )


def _edges(leaving: int, edges: int) -> str:
    if edges == 1:
        return "its edge"
    each, more = divmod(leaving, edges)
    return f"{edges} edges, {f'{each} or {each + 1}' if more else each} to each"


def _blocks(these: list[int]) -> str:
    return f"{'block' if len(these) == 1 else 'blocks'} {', '.join(map(str, these))}"


def _hides_nothing(rank: int, names: list[str], width: int) -> str:
    boundaries = "boundary" if len(names) == 1 else "boundaries"
    advice = f"set it to {width}, or to 0" if width <= MAX_RANK else "set it to 0"
    return (
        f"{boundaries} {', '.join(names)}: split.perturbation {rank} rotates {rank} of the model's {width} dimensions, "
        f"and whoever has the public model reads the text from what the others show: {advice} (docs/split.md)"
    )
