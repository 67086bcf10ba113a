"""Work on the middle blocks of a device's job: what an edge's core asks for, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.messages.adapter import Vector
from echelon.messages.frames import Decline
from echelon.messages.wire import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeStart:
    """Where the middle of a job starts, float32[d] both; coordinates of the device's own blocks do not matter.

    `secret` is the session's, of 32 bytes; the task's tensor holds what the device says of its perturbation.
    """

    base: Vector
    start: Vector
    front: int
    back: int
    mu: float
    progress: float
    state: bytes | None
    secret: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTask:
    """Work on the middle blocks of one device's job. Tasks of one device are done one after the other, in order.

    `head` says what: `Begin` or `Assess` (with `start`), `Forward`, `Backward`, `Look` (with the tensor's bytes), or
    `Finish`. `step` is whether the optimiser's step of the step before is due first, with `scale`; `last`, whether a
    backward pass is the last of its step.
    """

    device: str
    session: bytes
    job: int
    head: Message
    tensor: bytes = b""
    step: bool = False
    scale: float = 1.0
    last: bool = False
    start: EdgeStart | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeDone:
    """What came of an `EdgeTask`.

    Attributes:
        tensor: bytes of the output or gradient.
        norm2: ‖g‖² of the middle's gradient, after the last backward pass of a step.
        moved: where a finished job's middle moved, float32[d], 0 outside; and the moments.
        fault: why it could not be done.
    """

    task: EdgeTask
    tensor: bytes = b""
    norm2: float = 0.0
    moved: Vector | None = None
    state: bytes | None = None
    fault: Decline | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EdgeDrop:
    """A device's job was given up: let go of what is kept of it."""

    device: str
