"""The data of every boundary, read before training begins: what there is, what is left out, and all that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from echelon.clock import is_virtual
from echelon.compute.pool import LearnerPool
from echelon.errors import ConfigError
from echelon.run.recorder import Recorder
from echelon.training.learner import DataFacts


async def read_data(
    compute: LearnerPool, boundaries: Sequence[str], recorder: Recorder
) -> dict[str, DataFacts]:
    """Read, split and deal the data of all boundaries, and tell the recorder what each of them has.

    The adapter's layers are told with them.

    Args:
        compute: where training runs, which keeps the data.
        boundaries: their names.
        recorder: gets a line of `metrics.jsonl` for each.

    Returns:
        Counts by boundary; nothing where learners have no data.

    Raises:
        ConfigError: what is wrong in any of them, one sentence each.
    """
    answers: list[DataFacts | ConfigError | None] = []
    if is_virtual():
        answers = [await _asked(compute, name) for name in boundaries]
    else:
        answers = list(await asyncio.gather(*(_asked(compute, name) for name in boundaries)))
    by_name = dict(zip(boundaries, answers, strict=True))
    faults = [
        f"boundary {name}: {fault}" for name, fault in by_name.items() if isinstance(fault, ConfigError)
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    if (layers := await compute.layers()) is not None:
        recorder.layers = asdict(layers)
        recorder.write("adapter", recorder.now, **recorder.layers)
    facts = {name: one for name, one in by_name.items() if isinstance(one, DataFacts)}
    for name, one in facts.items():
        recorder.write("data", recorder.now, boundary=name, **asdict(one))
    return facts


async def _asked(compute: LearnerPool, boundary: str) -> DataFacts | ConfigError | None:
    try:
        return await compute.data_facts(boundary)
    except ConfigError as error:
        return error
