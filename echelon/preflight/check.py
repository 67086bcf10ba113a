"""Everything together: rules, model, data and brokers of a run file, and all faults in one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings
from echelon.errors import ConfigError, EchelonError
from echelon.preflight.brokers import check_brokers
from echelon.preflight.data import Tally, check_source
from echelon.preflight.findings import Checked, RunFault, together
from echelon.preflight.memory import available
from echelon.preflight.metrics import check_own_metrics
from echelon.preflight.rules import check_rules
from echelon.provision.manifest_from_settings import secure_terms
from echelon.training.data.sources import source_bytes


@dataclass(frozen=True)
class Follower:
    """Who follows a check.

    Attributes:
        step: told what is looked at now, and how many bytes it has, if that is known.
        done: told how many of them were read.
    """

    step: Callable[[str, int | None], None] = lambda _what, _size: None
    done: Callable[[int], None] = lambda _read: None


def check(
    settings: RunSettings,
    *,
    brokers: Path | None = None,
    data: bool = True,
    watch: Follower | None = None,
) -> Checked:
    """Check a run file against what is there.

    Args:
        settings: the run file.
        brokers: the broker map, for a deployment.
        data: whether the boundaries' data is here, and so is read.
        watch: follows what is done.

    Returns:
        What there is, and what is wrong.
    """
    watch = watch or Follower()
    found = Checked()
    found.rules = check_rules(settings, found.faults, found.warnings)
    found.rules |= check_own_metrics(settings, found.faults)
    if not found.faults:  # these terms have the table of a rule of one's own in them
        try:
            secure_terms(settings)
        except EchelonError as error:
            found.faults.append(RunFault("settings", str(error)))
    if brokers is not None:
        found.brokers = check_brokers(settings, brokers, found.faults)
    if settings.learner.kind == "quadratic":
        return found
    from echelon.preflight.model import check_model  # torch, which nothing above needs
    from echelon.preflight.split import check_parts

    watch.step(f"model {settings.model.model}", None)
    found.model, tokenizer = check_model(settings, found.faults)
    if found.model is not None:
        found.warnings += _memory(settings, found.model.memory.total)
        check_parts(settings, found.model, tokenizer, found.faults, found.warnings)
    if data:
        _check_data(settings, tokenizer, found, watch)
    return found


def everything_wrong(settings: RunSettings, first: ConfigError) -> ConfigError:
    """All that is wrong with a run that could not begin, the error that ended it among it.

    Args:
        settings: the run file.
        first: why the run did not begin.
    """
    faults = check(settings).faults
    known = str(first)
    if not any(fault.message in known or known in fault.message for fault in faults):
        return first  # of a kind that a check does not look for: nothing is to hide it
    return together(faults, "the run file")


def _check_data(settings: RunSettings, tokenizer: Any, found: Checked, watch: Follower) -> None:
    """Read the data of every boundary."""
    model, length = settings.model, settings.training.sequence_length
    if tokenizer is not None and model.task == "causal" and not isinstance(tokenizer.eos_token_id, int):
        found.faults.append(
            RunFault(
                "model",
                "the model's tokenizer has no end-of-sequence token; set `eos_token` in its files",
            )
        )
    for spec in spec_of(settings).boundaries:
        where = f"boundary {spec.name}"
        try:
            size = source_bytes(spec.data)
        except ConfigError as error:
            found.faults.append(RunFault(where, str(error)))
            continue
        watch.step(where, size)
        tally = Tally(where, found.faults, watch.done)
        facts = check_source(spec, tokenizer, model.labels, length, tally)
        if tally.others:
            found.faults.append(RunFault(where, f"and {tally.others:,} more of its rows or files"))
        if facts is not None:
            found.sources[spec.name] = facts


def _memory(settings: RunSettings, each: int) -> list[str]:
    """A sentence where the processes of training are likely to need more memory than there is."""
    there = available()
    workers = 1 if settings.clock == "virtual" else settings.compute.workers
    needed = each * (workers or 1)
    if there is None or needed <= there:
        return []
    return [
        f"training needs about {needed / 1e9:.1f} GB of memory and {there / 1e9:.1f} GB are free: lower "
        "training.batch_size, training.sequence_length or compute.workers, or set model.gradient_checkpointing"
    ]
