"""What a device computes of a job that it shares with an edge: tasks, and what comes of each. Imports no torch.

Micro-batches of a step are counted from 0, and so are public probes and batches of an evaluation. Tensors are bytes of
the wire form.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.jobs.training import Evaluate, Evaluated, TrainJob, TrainOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTask:
    """A piece of a device's work. `job` is the number of the job or evaluation."""

    job: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTraining(PartTask):
    """Put weights, moments and data in place; `secret` is the session's, of 32 bytes.

    Gives the `tensor` that the edge is told at the start, and `placed`.
    """

    train: TrainJob
    secret: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStep(PartTask):
    """Read the next step's data. Gives the `count` of its micro-batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front(PartTask):
    """Carry a micro-batch through the first blocks. Gives the activation as `tensor`."""

    micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Back(PartTask):
    """Carry `hidden`, which the edge made of it, through the last blocks. Gives the gradient by it as `tensor`."""

    micro: int
    hidden: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontBackward(PartTask):
    """Carry a gradient back through the first blocks.

    `waited` is how many seconds the micro-batch's two trips to the edge and back took together.
    """

    micro: int
    gradient: bytes
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeStep(PartTask):
    """Take the optimiser's step, given ‖g‖² of the middle's gradient. Gives the edge's factor as `scale`."""

    norm2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEvaluation(PartTask):
    """Read what is to be evaluated. Gives the `count` of its batches."""

    evaluate: Evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEvaluation(PartTask):
    """Put the weights to be evaluated in place; `secret` is the session's, of 32 bytes.

    Gives the `tensor` that the edge is told at the start, and `placed`.
    """

    evaluate: Evaluate
    secret: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowBatch(PartTask):
    """Carry a probe after a training job, or a batch of an evaluation, through the first blocks. Gives `tensor`."""

    micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeBatch(PartTask):
    """Carry what the edge made of it, `hidden`, through the last blocks: what a probe shows, or a batch's loss."""

    micro: int
    hidden: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishPart(PartTask):
    """End the job or the evaluation. Gives its `outcome`; 0 moved in the middle, and the next may be cut elsewhere."""


DeviceTask = (
    StartTraining
    | ReadStep
    | Front
    | Back
    | FrontBackward
    | TakeStep
    | ReadEvaluation
    | StartEvaluation
    | ShowBatch
    | JudgeBatch
    | FinishPart
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """How a device's part is cut and paced in one job.

    Attributes:
        front: number of first blocks that are the device's.
        back: number of last blocks that are the device's.
        in_flight: most micro-batches that are under way together: it keeps activations of each.
        probes: how many public probes are looked at after the job; 0: none.
    """

    front: int
    back: int
    in_flight: int
    probes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDone:
    """What came of a `DeviceTask`; each kind of task says what it gives.

    Attributes:
        task: the task.
        tensor: bytes of the wire form.
        count: number of micro-batches or batches.
        scale: factor by which the edge scales its gradient.
        placed: how the part is cut and paced.
        outcome: what the job or evaluation came to.
        fault: what is wrong with a tensor of the edge's; empty: nothing.
    """

    task: DeviceTask
    tensor: bytes = b""
    count: int = 0
    scale: float = 1.0
    placed: Placed | None = None
    outcome: TrainOutcome | Evaluated | None = None
    fault: str = ""
