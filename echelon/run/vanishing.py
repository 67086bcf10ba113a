"""Devices that vanish: the fault schedules of a run file, as an interceptor for the device actor."""

from __future__ import annotations

from collections.abc import Iterable

from echelon.actors.device import Interceptor
from echelon.config.experiments import DeviceFault
from echelon.rounds.effects import Effect, Publish


def vanishing(faults: Iterable[DeviceFault]) -> Interceptor | None:
    """An interceptor that lets the named devices leave without a word at the named points; None without faults."""
    by_device = {fault.device: fault for fault in faults}
    if not by_device:
        return None

    def intercept(device: str, effect: Effect) -> bool:
        fault = by_device.get(device)
        if fault is None:
            return True
        if fault.at == "start":
            return False
        if not isinstance(effect, Publish):
            return True
        return not (effect.message.kind == fault.at and effect.window >= fault.window)

    return intercept
