"""The frames of a split training session: what is inside the seal, between one device and its edge.

A frame is a head and perhaps a tensor. Real numbers travel as the 8 bytes of an IEEE 754 double, little-endian.
"""

from __future__ import annotations

import math
import struct
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field, Strict

from echelon.messages.split import Jobs
from echelon.messages.wire import U16, U63, Message, Reason, Refused, Registry, pack, unpack

MAX_HEAD_BYTES = 8 * 1024
MAX_STEPS = 1 << 20
MAX_MICRO = 256
"""Most micro-batches of one step."""
_LENGTH = struct.Struct(">I")

Double = Annotated[bytes, Field(min_length=8, max_length=8)]
Step = Annotated[int, Field(ge=0, lt=MAX_STEPS)]
Micro = Annotated[int, Field(ge=0, lt=MAX_MICRO)]


def to_double(value: float) -> bytes:
    """The 8 bytes of a number."""
    return struct.pack("<d", value)


def from_double(data: bytes) -> float:
    """The reverse of `to_double`.

    Raises:
        Refused: not finite, or negative: neither norms nor factors are.
    """
    (value,) = struct.unpack("<d", data)
    if not math.isfinite(value) or value < 0:
        raise Refused(Reason.BAD_FRAME, f"a norm or factor of {value}")
    return float(value)


class Decline(StrEnum):
    """Why an edge does not, or no longer, do a job."""

    UNKNOWN_VERSION = "unknown-version"
    """It does not have that version of the adapter yet, or no more."""
    UNKNOWN_JOB = "unknown-job"
    """It does not have the middle update of an earlier job that the start contains."""
    TOO_MANY_JOBS = "too-many-jobs"
    """More updates of earlier jobs are counted on than an edge keeps of one device."""
    BAD_CUT = "bad-cut"
    """There are no such blocks, or none is left between."""
    BAD_TENSOR = "bad-tensor"
    NOT_TRAINED = "not-trained"
    """The middle's weights would not be finite any more, or its moments are another cut's."""
    BAD_FRAME = "bad-frame"
    """Frames did not come as the protocol has them."""


class Begin(Message):
    """A job begins: H steps from the base of that version, with the updates of earlier jobs on top."""

    kind: ClassVar[str] = "begin"
    job: U63
    version: U63
    on_top: Jobs
    after: U63
    """The job whose moments it goes on from; 0: from none."""
    front: U16
    """p: the device's first blocks."""
    back: U16
    """q: its last blocks."""
    mu: Double
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]


class Assess(Message):
    """An evaluation begins: of the adapter of that commit, and nothing is trained. `Look` and `Finish` follow."""

    kind: ClassVar[str] = "assess"
    job: U63
    commit: U63
    front: U16
    """p and q, as in `Begin`."""
    back: U16


class Begun(Message):
    """The edge has put the job's middle in place."""

    kind: ClassVar[str] = "begun"
    job: U63


class Declined(Message):
    """The edge gave the job up; nothing of it is kept."""

    kind: ClassVar[str] = "declined"
    job: U63
    reason: Annotated[Decline, Strict(False)]


class Forward(Message):
    """The activation behind the device's first blocks. The first frame of a step applies the step before."""

    kind: ClassVar[str] = "forward"
    job: U63
    step: Step
    micro: Micro
    count: Annotated[int, Field(ge=1, le=MAX_MICRO)]
    """Micro-batches of this step."""
    scale: Double
    """What the gradient of the step before is multiplied by, so that the whole gradient's norm is clipped."""


class Output(Message):
    """The activation behind the edge's blocks."""

    kind: ClassVar[str] = "output"
    job: U63
    step: Step
    micro: Micro


class Backward(Message):
    """The loss's gradient of that activation."""

    kind: ClassVar[str] = "backward"
    job: U63
    step: Step
    micro: Micro


class Gradient(Message):
    """The gradient of the activation that the device sent."""

    kind: ClassVar[str] = "gradient"
    job: U63
    step: Step
    micro: Micro
    last: Annotated[bool, Field()]
    """Whether it is the last of its step."""
    norm2: Double
    """With the last one: ‖g‖² of the middle's gradient over the whole step."""


class Look(Message):
    """An activation that nothing is trained on: of a public probe, after the last step; or of an evaluation's batch.

    The first frame of a training job's looks applies its last step; its factor goes with all of them.
    """

    kind: ClassVar[str] = "look"
    job: U63
    micro: Micro
    scale: Double


class Looked(Message):
    """That activation behind the edge's blocks."""

    kind: ClassVar[str] = "looked"
    job: U63
    micro: Micro


class Finish(Message):
    """All steps are done; the clip factor of the last one. Or the evaluation is over."""

    kind: ClassVar[str] = "finish"
    job: U63
    scale: Double


class Finished(Message):
    """The edge has stored the middle update of the job, or let go of the evaluation."""

    kind: ClassVar[str] = "finished"
    job: U63


FRAMES = Registry(
    "split frame",
    (Begin, Assess, Begun, Declined, Forward, Output, Backward, Gradient, Look, Looked, Finish, Finished),
)
"""The closed set of heads."""


def encode_frame(head: Message, tensor: bytes = b"") -> bytes:
    """A frame's plain bytes."""
    encoded = pack([head.kind, head.revision, head.encode()])
    return _LENGTH.pack(len(encoded)) + encoded + tensor


def decode_frame(data: bytes) -> tuple[Message, bytes]:
    """Head and tensor of a frame.

    Raises:
        Refused: it is none.
    """
    if len(data) < _LENGTH.size:
        raise Refused(Reason.TRUNCATED, f"a frame of {len(data)} bytes")
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    if length > MAX_HEAD_BYTES or end > len(data):
        raise Refused(Reason.BAD_FRAME, f"a head of {length} bytes in a frame of {len(data)}")
    fields = unpack(data[_LENGTH.size : end], limit=MAX_HEAD_BYTES)
    if not isinstance(fields, tuple) or len(fields) != 3:
        raise Refused(Reason.BAD_FRAME, "a frame without a head")
    kind, revision, body = fields
    if not (isinstance(kind, str) and type(revision) is int and isinstance(body, bytes)):
        raise Refused(Reason.BAD_FRAME, "a frame's head names no kind")
    return FRAMES.find(kind, revision).decode(body), data[end:]
