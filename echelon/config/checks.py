"""What settings of several parts must keep together: one check for each sentence that a user may read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from echelon.config.boundary import BoundarySettings
from echelon.config.metrics import check_metrics
from echelon.config.rank_checks import check_ranks
from echelon.config.split_checks import check_split
from echelon.config.training import check_task
from echelon.config.values import COHORT_LIMIT, ENROLLED_LIMIT
from echelon.messages.names import check_member

if TYPE_CHECKING:
    from echelon.config.run import RunSettings

MAX_WINDOWS_UNDER_WAY = 24
"""Most windows that the deltas of one boundary, decided or not, may hold."""


def check_run(run: RunSettings) -> None:
    """Check what no part of a run file can check alone.

    Raises:
        ValueError: the first sentence that does not hold, and what to change.
    """
    _check_names(run)
    _check_samples(run)
    for boundary in run.boundaries:
        _check_boundary(run, boundary)
    _check_adapter(run)
    _check_optimizer(run)
    _check_personal(run)
    _check_compute(run)
    _check_parameters(run)
    _check_budget(run)
    _check_windows_under_way(run)
    _check_steps(run)
    _check_density(run)
    _check_short_ring(run)
    _check_inward(run)
    _check_pace_windows(run)
    _check_losses(run)
    _check_eager(run)
    check_metrics(run)
    check_ranks(run)
    _check_faults(run)
    _check_boundary_links(run)
    _check_speeds(run)


def _check_boundary(run: RunSettings, boundary: BoundarySettings) -> None:
    check_task(run.model, boundary.data, boundary.name)
    if boundary.split is not None:
        check_split(run, boundary, boundary.split)
    _check_floor_is_reached(run, boundary)
    _check_enrolled(boundary)
    _check_cohort_bounds(run, boundary)
    _check_floor_fits_a_cohort(run)
    _check_shards(run, boundary)


def _check_adapter(run: RunSettings) -> None:
    if run.adapter.dora and run.model.quantization == "int8":
        raise ValueError(
            "adapter.dora needs model.quantization nf4 or none: the lengths of weights in 8 bits are not known when it "
            "begins"
        )

    if run.adapter.kind != "lora" and run.learner.kind != "lora":
        raise ValueError(
            f"adapter.kind {run.adapter.kind} is of models, and a {run.learner.kind} learner has none: leave it out"
        )


def _check_optimizer(run: RunSettings) -> None:
    if run.training.optimizer == "adamw":
        return
    if run.learner.kind != "lora":
        raise ValueError(
            f"training.optimizer muon is of models, and a {run.learner.kind} learner has none: leave it out"
        )
    if run.adapter.form.cores or run.adapter.form.personal:
        other = "trains cores" if run.adapter.form.cores else "keeps B on the device"
        raise ValueError(
            f"training.optimizer muon moves the factors A and B, and adapter.kind {run.adapter.kind} {other}: set "
            "adapter.kind to lora or ffa, or leave training.optimizer out"
        )


def _check_personal(run: RunSettings) -> None:
    if not run.adapter.form.personal:
        return
    for boundary in run.boundaries:
        if boundary.shards is not None:
            raise ValueError(
                f"boundary {boundary.name!r} deals its data into shards, which move between devices, and of "
                f"adapter.kind {run.adapter.kind} each device keeps a part that fits its own data: leave shards out, "
                "or take another kind"
            )
    if run.logging.samples:
        raise ValueError(
            f"logging.samples continue texts with the run's adapter, and of adapter.kind {run.adapter.kind} that is A "
            "alone, which changes nothing: leave them out"
        )


def _check_density(run: RunSettings) -> None:
    if run.sync.density is not None and run.sync.codec != "sparse":
        raise ValueError(
            f"sync.density is of sparse deltas, and sync.codec is {run.sync.codec}: set it to sparse, or leave "
            "sync.density out"
        )


def _check_short_ring(run: RunSettings) -> None:
    if run.secure.ring_bits == 16 and run.secure.coordinate_clip is None:
        rate, steps = run.training.lr, run.steps_bounds()[1]
        example = (
            f": AdamW moves a coordinate by about training.lr a step, so {rate * steps:g} for {steps} steps"
        )
        raise ValueError(
            "secure.ring_bits = 16 needs secure.coordinate_clip, the largest change of one coordinate in one update"
            f"{example if run.learner.kind == 'lora' else ''}; set it, or set secure.ring_bits: 32"
        )


def _check_inward(run: RunSettings) -> None:
    sync = run.sync
    if sync.inward != "relay":
        if sync.full_every is not None:
            raise ValueError(
                f"sync.full_every is of relayed commits, and sync.inward is {sync.inward}: set it to relay, or leave "
                "sync.full_every out"
            )
        return
    if sync.outer.kind != "average" or sync.outer.rule is not None:
        raise ValueError(
            f"sync.inward relay needs sync.outer.kind average, and the outer step is "
            f"{sync.outer.rule or sync.outer.kind}: gates that derive an adapter do not carry its state. Set "
            "sync.outer.kind to average, or sync.inward to adapter"
        )


def _check_compute(run: RunSettings) -> None:
    if run.model.device_map is not None:
        for setting, count in (("ranks", run.compute.ranks), ("workers", run.compute.workers or 1)):
            if count > 1:
                raise ValueError(
                    f"model.device_map spreads the model of one process over all GPUs, and compute.{setting} is "
                    f"{count}: set it to 1, or leave model.device_map out"
                )
    if not run.compute.divide_base:
        return
    if run.compute.ranks < 2:
        raise ValueError(
            "compute.divide_base divides the frozen weights among compute.ranks, and there is 1: set compute.ranks to "
            "the number of GPUs, or leave it out"
        )
    if run.model.quantization is not None:
        raise ValueError(
            "compute.divide_base needs weights as model.dtype says; quantised ones are not divided: leave "
            "model.quantization out, or compute.divide_base"
        )


def _check_names(run: RunSettings) -> None:
    boundaries = [boundary.name for boundary in run.boundaries]
    _check_unique("boundaries", boundaries)
    _check_unique("witnesses, or a witness and a boundary,", [*boundaries, *run.witnesses.names])
    devices = _devices(run)
    _check_unique("devices", devices)
    # Names are principals on a broker and files of a run: a device must not be taken for somebody else.
    for name in devices:
        check_member(name)
    edges = [edge for boundary in run.boundaries for edge in boundary.edge_names()]
    _check_unique("edges or devices", [*devices, *edges])


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"two {what} are called {twice[0]!r}: give each a name of its own")


def _check_samples(run: RunSettings) -> None:
    if run.model.task == "classify" and run.logging.samples:
        raise ValueError("logging.samples: a classifier does not continue texts: leave them out")


def _check_floor_is_reached(run: RunSettings, boundary: BoundarySettings) -> None:
    count, floor = len(boundary.device_list()), run.secure.floor
    if count < floor:
        raise ValueError(
            f"boundary {boundary.name!r} has {count} devices, and secure.k_min + secure.colluding = "
            f"{floor}: no window could ever close. Add devices or lower the floor"
        )


def _check_enrolled(boundary: BoundarySettings) -> None:
    count = len(boundary.device_list())
    if count > ENROLLED_LIMIT:
        raise ValueError(
            f"boundary {boundary.name!r} has {count} devices; at most {ENROLLED_LIMIT} can be "
            f"enrolled: split it"
        )


def _check_cohort_bounds(run: RunSettings, boundary: BoundarySettings) -> None:
    floor = run.secure.floor
    bounds = {"window.cohort": run.window.cohort, "secure.cohort_max": run.secure.cohort_max}
    for setting, bound in bounds.items():
        if bound is not None and bound < floor:
            raise ValueError(
                f"{setting} = {bound} in boundary {boundary.name!r} is below secure.k_min + "
                f"secure.colluding = {floor}: raise {setting} or lower the floor"
            )


def _check_floor_fits_a_cohort(run: RunSettings) -> None:
    floor = run.secure.floor
    if floor > COHORT_LIMIT:
        raise ValueError(
            f"secure.k_min + secure.colluding = {floor}, and a cohort holds at most {COHORT_LIMIT} devices: "
            f"lower the floor"
        )


def _check_shards(run: RunSettings, boundary: BoundarySettings) -> None:
    floor = run.secure.floor
    if boundary.shards is not None and boundary.shards < floor:
        raise ValueError(
            f"boundary {boundary.name!r} has {boundary.shards} shards, and no two devices of a window train "
            f"one shard: at least secure.k_min + secure.colluding = {floor} are needed. Raise shards or lower "
            f"the floor"
        )


def _check_parameters(run: RunSettings) -> None:
    secure, sync = run.secure, run.sync
    for place, parameters, own in (
        ("secure.staleness", secure.staleness.parameters, ":" in secure.staleness.rule),
        ("sync.staleness", sync.staleness.parameters, ":" in sync.staleness.rule),
        ("sync.outer", sync.outer.parameters, sync.outer.rule is not None),
        ("sync.pace_rule", sync.pace_parameters, sync.pace_rule is not None),
    ):
        if parameters and not own:
            raise ValueError(
                f"{place}: parameters are for a class of your own, and none is named: leave them out, or name it "
                f"as package.module:Class"
            )


def _check_budget(run: RunSettings) -> None:
    budget = run.budget
    if all(bound is None for bound in (budget.commits, budget.tokens, budget.seconds, budget.patience)):
        raise ValueError(
            "budget has no bound: set budget.commits, budget.tokens, budget.seconds or budget.patience"
        )


def _check_windows_under_way(run: RunSettings) -> None:
    most, deltas, windows = run.windows_max(), run.sync.pending_max + 1, run.sync.windows
    if most * deltas > MAX_WINDOWS_UNDER_WAY or most < windows:
        raise ValueError(
            f"sync: windows_max × (pending_max + 1) = {most} × {deltas} must be "
            f"at most {MAX_WINDOWS_UNDER_WAY}, and windows_max at least windows = {windows}: lower sync.windows or "
            f"sync.pending_max"
        )


def _check_steps(run: RunSettings) -> None:
    steps, (low, high) = run.sync.steps, run.steps_bounds()
    if not low <= steps <= high:
        raise ValueError(
            f"sync.steps = {steps} is outside sync.pace's bounds {low}..{high}: a run starts within them"
        )


def _check_pace_windows(run: RunSettings) -> None:
    if not run.sync.windows <= run.pace_windows_max() <= run.windows_max():
        raise ValueError(
            f"sync.pace.windows_max = {run.pace_windows_max()} must be at least sync.windows = "
            f"{run.sync.windows} and at most sync.windows_max = {run.windows_max()}"
        )


def _check_eager(run: RunSettings) -> None:
    sync = run.sync
    if not sync.eager:
        return
    if not sync.overlap:
        raise ValueError(
            "sync.eager is for runs with overlap; at a barrier nothing is trained meanwhile: leave one of them out"
        )
    if sync.outer.rule is not None or sync.outer.kind == "fedadam":
        kind = sync.outer.rule or sync.outer.kind
        raise ValueError(
            f"sync.eager needs an outer step that moves in proportion to a delta, and {kind} does not: set "
            "sync.outer.kind to average, nesterov or corrected, or leave sync.eager out"
        )


def _check_losses(run: RunSettings) -> None:
    if run.sync.pace.kind == "adacomm" and not run.sync.report_loss:
        raise ValueError(
            "sync.pace.kind = adacomm needs losses: set sync.report_loss, or choose another kind"
        )


def _check_faults(run: RunSettings) -> None:
    devices = _devices(run)
    unknown = [fault.device for fault in run.simulation.faults if fault.device not in devices]
    if unknown:
        raise ValueError(
            f"simulation.faults names {unknown[0]!r}, which is not a device; devices are {', '.join(devices[:8])}…"
        )


def _check_boundary_links(run: RunSettings) -> None:
    named = [link.boundary for link in run.simulation.exchange_links]
    _check_unique("simulation.exchange_links", named)
    for name in named:
        _check_is_boundary(run, "simulation.exchange_links", name)


def _check_is_boundary(run: RunSettings, setting: str, name: str) -> None:
    boundaries = [boundary.name for boundary in run.boundaries]
    if name not in boundaries:
        raise ValueError(
            f"{setting} names {name!r}, which is not a boundary; boundaries are {', '.join(boundaries[:8])}"
        )


def _check_speeds(run: RunSettings) -> None:
    devices = _devices(run)
    split = {device for boundary in run.boundaries if boundary.split is not None for device in _of(boundary)}
    for change in run.simulation.speeds:
        if change.boundary is not None:
            _check_is_boundary(run, "simulation.speeds", change.boundary)
            named = [device for one in run.boundaries if one.name == change.boundary for device in _of(one)]
        else:
            named = [device for device in devices if device == change.device]
        if not named:
            raise ValueError(
                f"simulation.speeds names {change.device!r}, which is not a device; devices are "
                f"{', '.join(devices[:8])}…"
            )
        if split.intersection(named):
            raise ValueError(
                f"simulation.speeds changes the speed of {named[0]!r}, whose boundary trains the model in parts, and "
                "halves have one speed for the whole run: leave the change out, or boundaries[].split"
            )


def _of(boundary: BoundarySettings) -> list[str]:
    return [device.id for device in boundary.device_list()]


def _devices(run: RunSettings) -> list[str]:
    return [device for boundary in run.boundaries for device in _of(boundary)]
