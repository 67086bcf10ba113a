"""The order of one window's messages at a device: each has its turn, and none has two contents.

A message that is shown again with the same content gets the same answer. Whatever contradicts the order ends the window
for this device, for good.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from echelon.messages.handshake import Deliver, Included, KeyList, SharesList, Signatures
from echelon.messages.wire import DeviceId, Message
from echelon.secagg.faults import Abort, Aborted

Shown = KeyList | SharesList | Deliver | Included | Signatures
"""What a server shows a device."""

_Answer = TypeVar("_Answer", bound=Message)


class ClientStep(IntEnum):
    """How far a device is in a window."""

    NEW = 0
    ADVERTISED = 1
    SHARED = 2
    UPLOADED = 3
    DECIDED = 4
    """An included set is known and stuck to, whether it is signed or leaves this device out."""
    UNMASKED = 5


class Turns:
    """What one device was shown in one window, what it answered, and whether it still takes part.

    Args:
        window: number of the window.
        me: this device.

    Attributes:
        step: how far it is.
        shown: the messages that it went by, by kind.
        aborted: why it left the window; None while it takes part.
    """

    def __init__(self, window: int, me: DeviceId) -> None:
        self.step = ClientStep.NEW
        self.shown: dict[str, Message] = {}
        self.aborted: Aborted | None = None
        self._window, self._me = window, me
        self._answers: dict[str, Message] = {}

    def check_alive(self) -> None:
        """Raise the reason if the device has left the window."""
        if self.aborted is not None:
            raise self.aborted

    def abort(self, reason: Abort, detail: str) -> Aborted:
        """Leave the window for good; gives the error to raise."""
        self.aborted = Aborted(reason, f"window {self._window}: {detail}")
        return self.aborted

    def expect(self, message: Shown, step: ClientStep) -> None:
        """Refuse a message of another window, a different one of a kind that was shown, or one out of turn."""
        self.check_alive()
        if message.window != self._window:
            raise self.abort(Abort.WINDOW, f"a {message.kind} of window {message.window}")
        if self.shown.get(message.kind, message) != message:
            raise self.abort(Abort.FORK, f"two different {message.kind} messages were shown to {self._me}")
        if self.step is not step:
            raise self.abort(
                Abort.ORDER, f"a {message.kind} message while the device is {self.step.name.lower()}"
            )

    def answered(self, message: Shown, step: ClientStep, answer: type[_Answer]) -> _Answer | None:
        """Look up the answer to a message.

        Args:
            message: what is shown to the device.
            step: the step at which it is this message's turn.
            answer: type of the answer.

        Returns:
            The answer that was given to exactly this message before; None if it is its turn now.

        Raises:
            Aborted: it is neither.
        """
        if self.aborted is None and self.shown.get(message.kind) == message:
            found = self._answers.get(message.kind)
            if isinstance(found, answer):
                return found
        self.expect(message, step)
        return None

    def done(self, message: Shown, step: ClientStep, answer: _Answer) -> _Answer:
        """Go on to a step.

        Args:
            message: what the device goes by.
            step: where it is now.
            answer: its answer, which the same message gets again.

        Returns:
            The answer.
        """
        self.shown[message.kind] = message
        self._answers[message.kind] = answer
        self.step = step
        return answer
