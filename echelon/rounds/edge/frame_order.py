"""In which order the frames of a job come, as an edge takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from echelon.messages.adapter import F32
from echelon.messages.frames import Assess, Backward, Begin, Finish, Forward, Look, from_double
from echelon.messages.wire import Message, Reason, Refused


@dataclass(slots=True)
class MiddleJob:
    """A job or an evaluation that is under way; never stored."""

    begin: Begin | Assess
    opening: bytes = b""
    """What came with it, for whoever computes."""
    on_top: F32 | None = None
    """Earlier updates that its start contains, as they were kept when it began; float32[d]."""
    state: bytes | None = None
    """The moments that it goes on from."""
    base: tuple[int, bytes] = (-1, b"")
    """Version and digest of the adapter that it was started from."""
    waiting: bool = False
    """Whether it waits for the adapter that it starts from."""
    begun: bool = False
    step: int = -1
    count: int = 0
    forwarded: set[int] = field(default_factory=set)
    backwarded: set[int] = field(default_factory=set)
    looked: set[int] = field(default_factory=set)
    finishing: bool = False

    @property
    def stepped(self) -> bool:
        """Whether every micro-batch of the step is through."""
        return len(self.backwarded) == self.count

    def take(self, head: Message) -> tuple[bool, float, bool]:
        """Take the next frame of a training job.

        Returns:
            Whether the optimiser's step before it is due; the factor of that; whether it is the last backward pass of
            its step.

        Raises:
            Refused: it is out of turn; nothing was changed.
        """
        steps = self.begin.steps if isinstance(self.begin, Begin) else 0
        match head:
            case Forward() if self.begun and head.micro < head.count:
                scale = from_double(head.scale)
                if head.step == self.step + 1 < steps and self.stepped:
                    due = self.step >= 0
                    self.step, self.count = head.step, head.count
                    self.forwarded, self.backwarded = {head.micro}, set()
                    return due, scale, False
                again = (head.step, head.count) == (self.step, self.count)
                if again and head.micro not in self.forwarded:
                    self.forwarded.add(head.micro)
                    return False, 1.0, False
            case Backward() if head.step == self.step and head.micro in self.forwarded - self.backwarded:
                self.backwarded.add(head.micro)
                return False, 1.0, self.stepped
            case Look() if self._through(steps) and head.micro not in self.looked:
                scale, due = from_double(head.scale), not self.looked
                self.looked.add(head.micro)
                return due, scale, False
            case Finish() if self._through(steps):
                scale = from_double(head.scale)
                self.finishing = True
                return not self.looked, scale, False
        raise Refused(
            Reason.BAD_FRAME,
            f"{head.kind} at step {self.step} of {steps}, with {len(self.forwarded)} micro-batches",
        )

    def _through(self, steps: int) -> bool:
        return self.begun and self.step == steps - 1 and self.stepped and not self.finishing
