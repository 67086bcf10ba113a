"""The window that a derivation is at, with what was read of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from echelon.messages.boundary import Cohort
from echelon.messages.handshake import Included, Signatures, Unmask
from echelon.messages.split import EdgePart
from echelon.messages.wire import DeviceId
from echelon.secagg.server import Server


@dataclass
class WindowUnderWay:
    """One window that is under way, as far as it was read."""

    cohort: Cohort
    server: Server
    included: Included | None = None
    signatures: Signatures | None = None
    answers: list[tuple[DeviceId, Unmask]] = field(default_factory=list)
    uploads: dict[tuple[DeviceId, bytes], bytes] = field(default_factory=dict)
    """Masked updates by device and digest; which one counts is what the signed included set says."""
    added: set[tuple[DeviceId, bytes]] = field(default_factory=set)
    parts: dict[tuple[str, bytes], tuple[EdgePart, bytes]] = field(default_factory=dict)
    """What edges signed, by edge and digest; which count is what the window record says."""
