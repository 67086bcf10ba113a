"""What can go wrong in a window, as errors that carry an enumerated reason."""

from __future__ import annotations

from enum import StrEnum

from echelon.errors import ProtocolError
from echelon.messages.wire import Reason


class Abort(StrEnum):
    """Why a device takes no further part in a window."""

    ORDER = "order"
    """A round was asked for before the one that it follows, or again with other content."""
    WINDOW = "window"
    """A message of another window."""
    MEMBERS = "members"
    """A list names devices that it may not name, or leaves this one out."""
    KEYS = "keys"
    """An advertisement is not signed by its device, repeats another's key, or is not what was advertised."""
    THRESHOLD = "threshold"
    """Fewer devices than the threshold, or a threshold that two disjoint groups could reach."""
    FLOOR = "floor"
    """Too few heads or too little weight for one update to hide among."""
    DELIVERY = "delivery"
    """The sealed shares handed over are not those of the list."""
    LENGTH = "length"
    """A vector of another type or length than the context's."""
    FORK = "fork"
    """Two different versions of one decision were shown to this device."""
    UPLOAD = "upload"
    """The included list names another upload of this device than the one it made."""
    SIGNATURES = "signatures"
    """The included set is not signed by enough devices."""


class Aborted(ProtocolError):
    """A device refuses to go on with a window; every later call on that client raises the same."""

    def __init__(self, reason: Abort, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class InputRefused(ProtocolError):
    """The server takes no account of a device's message; `reason` is what goes to `deadletter`."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class WindowFailed(ProtocolError):
    """A window ends without a sum.

    Attributes:
        reason: "threshold", "floor", "bad-shares" or "mismatch".
        suspects: devices whose shares do not fit, ascending; empty for other reasons.
    """

    def __init__(self, reason: str, detail: str, suspects: tuple[str, ...] = ()) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.suspects = suspects
