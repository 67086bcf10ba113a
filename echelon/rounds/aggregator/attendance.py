"""Which devices of a boundary are ready, which of them are waited for, and whose turn it is.

A participation window closes when as many are ready as are wanted. Devices that are not there, or that missed
deadlines, are not waited for; and where more are ready than a cohort holds, whoever was in none for longest goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from echelon.laws.leases import epoch_of
from echelon.laws.snapshot import SnapshotList
from echelon.messages.boundary import Cohort, Leave, Ready
from echelon.messages.manifest import SecureTerms
from echelon.messages.wire import DeviceId, Reason
from echelon.secagg.faults import InputRefused
from echelon.secagg.roster import Roster

ABSENT_AFTER = 2
"""Deadlines in a row that a device may miss before windows close without waiting for it."""


def number_of(message: Ready | Leave) -> int:
    """The number that a device gave to an offer or a leave."""
    return message.offer if isinstance(message, Ready) else message.number


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A device that is ready: what it offers, and where on `checkin` it says so; fields as in `Ready`."""

    offer: int
    n: int
    base_version: int
    base_sha256: bytes
    offset: int
    shards: tuple[int, ...] = ()
    edge: str = ""
    jobs: tuple[int, ...] = ()

    @classmethod
    def of(cls, message: Ready, offset: int) -> CheckIn:
        """The check-in that stands at an offset."""
        return cls(
            message.offer, message.n, message.base_version, message.base_sha256, offset, message.shards, message.edge,
            message.jobs,
        )  # fmt: skip


class StoredCheckIn(SnapshotList, frozen=True, kw_only=True):
    """A device and its check-in in a snapshot."""

    device: str
    offer: int
    n: int
    base_version: int
    base_sha256: bytes
    offset: int
    shards: tuple[int, ...]
    edge: str
    jobs: tuple[int, ...]

    @classmethod
    def of(cls, device: DeviceId, check: CheckIn) -> StoredCheckIn:
        """What is stored of a device that is ready."""
        return cls(
            device=device,
            offer=check.offer,
            n=check.n,
            base_version=check.base_version,
            base_sha256=check.base_sha256,
            offset=check.offset,
            shards=check.shards,
            edge=check.edge,
            jobs=check.jobs,
        )

    def check(self) -> CheckIn:
        """The check-in again."""
        return CheckIn(
            offer=self.offer,
            n=self.n,
            base_version=self.base_version,
            base_sha256=self.base_sha256,
            offset=self.offset,
            shards=self.shards,
            edge=self.edge,
            jobs=self.jobs,
        )


@dataclass
class Attendance:
    """The state.

    Args:
        roster: the devices that are enrolled.
        come_and_go: whether only devices that checked in are waited for; otherwise every enrolled one is.

    Attributes:
        ready: the newest check-in of each device that no cohort has used.
        there: devices that checked in and did not leave since.
        served: the newest window whose cohort each device was in.
        absent: devices that missed so many deadlines in a row that windows close without waiting for them.
    """

    roster: Roster
    come_and_go: bool
    ready: dict[DeviceId, CheckIn] = field(default_factory=dict)
    there: set[DeviceId] = field(default_factory=set)
    served: dict[DeviceId, int] = field(default_factory=dict)
    absent: set[DeviceId] = field(default_factory=set)
    _missed: dict[DeviceId, int] = field(default_factory=dict)
    _ready_on: Counter[int] = field(default_factory=Counter)
    """How many of `ready` trained from each version."""
    _epochs: dict[DeviceId, int] = field(default_factory=dict)
    """The newest lease of each slot that something was read of; 0 where the broker leases no slots."""

    def fence(self, device: DeviceId, message: Ready | Leave) -> None:
        """Refuse what a replica says that had the device's slot before the one which was heard last.

        Args:
            device: the slot's.
            message: an offer or a leave, whose number says under which lease it was made.

        Raises:
            InputRefused: it was made under an earlier one.
        """
        epoch = epoch_of(number_of(message))
        known = self._epochs.get(device, 0)
        if epoch < known:
            raise InputRefused(
                Reason.FENCED,
                f"{message.kind} of {device} is of lease {epoch} of its slot, and lease {known} was heard already",
            )
        self._epochs[device] = epoch

    def arrived(self, device: DeviceId, check: CheckIn) -> None:
        """A device checked in."""
        self._present(device)
        self.hold(device, check)

    def left(self, device: DeviceId) -> None:
        """A device said that it leaves: nobody waits for it until it is back."""
        self._drop(device)
        self.there.discard(device)
        self._miss(device, ABSENT_AFTER)

    def hold(self, device: DeviceId, check: CheckIn) -> None:
        """Take a check-in over that was read before, without what it says of deadlines."""
        self.there.add(device)
        self._hold(device, check)

    def taken(self, cohort: Cohort) -> None:
        """A cohort was made of check-ins: one from behind it, which a rebuild has read, is for the next."""
        for member in cohort.members:
            self._heard(DeviceId(member.device), member.offer)
            self._used(DeviceId(member.device), cohort.inputs)
            self.served[DeviceId(member.device)] = cohort.window
        for late in cohort.rejected:
            self._used(DeviceId(late.device), cohort.inputs)

    def in_turn(self) -> list[tuple[DeviceId, CheckIn]]:
        """Who is ready: whoever was in no cohort for longest, then whoever came first."""
        return sorted(self.ready.items(), key=lambda one: (self.served.get(one[0], -1), one[1].offset))

    def takeable(self, secure: SecureTerms, version: int) -> int:
        """Ready devices whose offers are not too old at a version, counted without going through all of them."""
        return sum(count for base, count in self._ready_on.items() if secure.weight(1, version - base) > 0)

    def wanted(self, cohort: int, floor: int) -> int:
        """Ready devices that close a window before its deadline.

        Args:
            cohort: devices that close one however many there are.
            floor: fewest that a window may have.
        """
        there = len(self.roster.entries) - len(self.absent)
        if self.come_and_go:
            there = len(self.there) - len(self.there & self.absent)
        return max(floor, min(cohort, there))

    def came(self, present: Collection[DeviceId], *, overdue: bool) -> None:
        """A cohort was made while these were ready; at a deadline every other enrolled device missed it."""
        for device in present:
            self._present(device)
        if overdue:
            for entry in self.roster.entries:
                device = DeviceId(entry.device)
                if device not in present:
                    self._miss(device, self._missed.get(device, 0) + 1)

    def restore(
        self,
        ready: Mapping[DeviceId, CheckIn],
        *,
        there: Collection[DeviceId],
        served: Mapping[DeviceId, int],
    ) -> None:
        """Take over what a snapshot kept; missed deadlines are counted anew after a restart.

        Args:
            ready: the newest check-in of each device that no cohort has used.
            there: devices that checked in and did not leave since.
            served: the newest window whose cohort each device was in.
        """
        self.ready, self._ready_on = {}, Counter()
        for device, check in ready.items():
            self._hold(device, check)
        self.there, self.served = set(there), dict(served)

    def _heard(self, device: DeviceId, number: int) -> None:
        self._epochs[device] = max(self._epochs.get(device, 0), epoch_of(number))

    def _hold(self, device: DeviceId, check: CheckIn) -> None:
        self._heard(device, check.offer)
        self._drop(device)
        self.ready[device] = check
        self._ready_on[check.base_version] += 1

    def _drop(self, device: DeviceId) -> None:
        check = self.ready.pop(device, None)
        if check is not None:
            self._ready_on[check.base_version] -= 1
            if not self._ready_on[check.base_version]:
                del self._ready_on[check.base_version]

    def _used(self, device: DeviceId, inputs: int) -> None:
        check = self.ready.get(device)
        if check is not None and check.offset < inputs:
            self._drop(device)

    def _miss(self, device: DeviceId, deadlines: int) -> None:
        self._missed[device] = deadlines
        if deadlines >= ABSENT_AFTER and device in self.roster:
            self.absent.add(device)

    def _present(self, device: DeviceId) -> None:
        self._missed.pop(device, None)
        self.absent.discard(device)
