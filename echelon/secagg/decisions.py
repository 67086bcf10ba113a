"""What a server decides in a window, round by round, and what every device will check of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum

from echelon.messages.handshake import Included, KeyList, SharesList, Signatures
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.faults import Aborted, WindowFailed
from echelon.secagg.partial_sums import check_included, over_rank_blocks

Decision = KeyList | SharesList | Included | Signatures


class Round(IntEnum):
    """The round whose inputs are awaited."""

    KEYS = 0
    SHARES = 1
    MASKED = 2
    CONSISTENCY = 3
    UNMASK = 4
    DONE = 5


DECIDES = {
    KeyList: Round.KEYS,
    SharesList: Round.SHARES,
    Included: Round.MASKED,
    Signatures: Round.CONSISTENCY,
}
"""In which round each of them is decided."""


def thriving(context: Context, devices: Iterable[DeviceId]) -> list[DeviceId]:
    """The devices that have t among themselves and their neighbours, ascending; the others would abort."""
    left = set(devices)
    while True:
        short = {d for d in left if len(context.holders(d) & left) < context.threshold}
        if not short:
            return sorted(left)
        left -= short


def signed_enough(context: Context, u3: Iterable[DeviceId], signers: Collection[DeviceId]) -> bool:
    """Whether t devices around each one of U3 signed it.

    Args:
        context: what the window is bound to.
        u3: the included devices.
        signers: the devices that signed.
    """
    t = context.threshold
    return all(len(context.holders(device) & set(signers)) >= t for device in u3)


def check_enough(
    context: Context, decision: KeyList | SharesList | Included, u2: frozenset[DeviceId] = frozenset()
) -> None:
    """Check the threshold around every device that a decision names, and the floors, as every device will.

    Args:
        context: what the window is bound to.
        decision: the list.
        u2: who shared keys, for an included set: of rank blocks the floor holds by itself.

    Raises:
        WindowFailed: too few are left.
    """
    names = (
        decision.devices if isinstance(decision, SharesList) else [entry.device for entry in decision.entries]
    )
    devices = {DeviceId(name) for name in names}
    if not devices or len(thriving(context, devices)) != len(devices):
        raise WindowFailed(
            "threshold",
            f"{len(devices)} devices are left for {decision.kind}, {context.threshold} are needed",
        )
    try:
        context.check_floor(devices, f"the {decision.kind} list")
        context.check_ring(devices, f"the {decision.kind} list")
        if isinstance(decision, Included):
            blocks = {number: one.devices for number, one in over_rank_blocks(context, u2).items()}
            check_included(context, blocks, u2=u2, u3=frozenset(devices))
    except Aborted as below:
        raise WindowFailed(below.reason.value, below.detail) from None
