"""The sum of a window, derived again from what was recorded of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from echelon.messages.handshake import Advertise, Consistency, Sealed, Unmask
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.decisions import Decision
from echelon.secagg.faults import InputRefused
from echelon.secagg.prg import RingVector, ring_bytes
from echelon.secagg.roster import Roster
from echelon.secagg.server import Server
from echelon.secagg.unmasking import SumResult

Input = Advertise | Sealed | Consistency | Unmask | RingVector
"""An input of a window: a message, or a masked vector."""


def rederive(
    context: Context, roster: Roster, decisions: Iterable[Decision], inputs: Iterable[tuple[DeviceId, Input]]
) -> SumResult:
    """The sum of a window from what was recorded of it: all its decisions, then its inputs in any order.

    What a server would refuse is left out, as it was then.

    Args:
        context: what the window is bound to.
        roster: the enrolled devices, already verified.
        decisions: all decisions of the window, in their order.
        inputs: what devices sent, each with its sender.

    Raises:
        ProtocolError: a decision is not a possible one.
        WindowFailed: the inputs do not give the sum.
    """
    server = Server(context, roster)
    for decision in decisions:
        server.adopt(decision)
    for device, found in inputs:
        try:
            match found:
                case Advertise():
                    server.on_advertise(device, found)
                case Sealed():
                    server.on_sealed(device, found)
                case Consistency():
                    server.on_consistency(device, found)
                case Unmask():
                    server.on_unmask(device, found)
                case _:
                    digest = hashlib.sha256(ring_bytes(found)).digest()
                    server.on_masked(device, found, digest)
        except InputRefused:
            continue  # refused then as now: it was no part of the sum
    return server.finish()
