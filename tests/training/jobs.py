"""One short training job, with what a test says of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from echelon.jobs.training import TrainJob


def trained(learner: Any, *, start: Any = None, steps: int = 3, mu: float = 0.0, **fields: Any) -> Any:
    """What the job gives; it starts from the initial adapter, and with a proximal term its base is half of that."""
    start = learner.initial_adapter() if start is None else start
    base = learner.initial_adapter() * np.float32(0.5) if mu else start
    return learner.train(
        TrainJob(data="a0", base=base, start=start, steps=steps, mu=mu, progress=0.0, **fields)
    )
