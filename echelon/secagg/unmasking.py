"""The last round of a window: the secrets are recovered from revealed shares, and the masks are taken off the sum."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from echelon.messages.handshake import KeyEntry, RevealedShare, Unmask
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context
from echelon.secagg.faults import WindowFailed
from echelon.secagg.keys import AgreementKey, commit_seed, mask_sign, pair_mask_key, self_mask_key
from echelon.secagg.partial_sums import RankSum
from echelon.secagg.prg import RingVector
from echelon.secagg.recovery import Recovery


@dataclass(frozen=True, slots=True)
class SumResult:
    """The sum of a window.

    Attributes:
        included: U3, ascending.
        total: uint32[length] or uint16[length], Σ of the included devices' vectors on the ring.
        uploads: SHA-256 of each included masked upload.
        signatures: the collected signatures over U3.
        dropped: U2 without U3, ascending: shared keys, but are not in the sum.
        suspects: devices whose shares were wrong and were left out, ascending.
        over: of each rank block who of U2 added to it, and with what cap; empty in a run without rank blocks.
    """

    included: tuple[DeviceId, ...]
    total: RingVector
    uploads: dict[DeviceId, bytes]
    signatures: dict[DeviceId, bytes]
    dropped: tuple[DeviceId, ...]
    suspects: tuple[DeviceId, ...]
    over: Mapping[int, RankSum] = field(default_factory=dict)


class Unmasking:
    """The secrets that unmask the sum of one window, as far as the answers give them.

    Args:
        context: what the window is bound to.

    Attributes:
        answers: what each device revealed.
        suspects: devices whose shares were wrong.
    """

    def __init__(self, context: Context) -> None:
        self.answers: dict[DeviceId, Unmask] = {}
        self._context = context
        self._recovery = Recovery(context.threshold)
        self._secrets: dict[DeviceId, bytes] = {}
        self._tried = 0

    @property
    def suspects(self) -> tuple[DeviceId, ...]:
        """Devices whose shares were wrong and were left out, ascending."""
        return tuple(DeviceId(device) for device in sorted(self._recovery.suspects))

    def recover(
        self, keys: Mapping[DeviceId, KeyEntry], u2: Collection[DeviceId], u3: Collection[DeviceId]
    ) -> frozenset[DeviceId]:
        """Try the secrets that are not known yet with the answers so far.

        Args:
            keys: the advertised keys, which tell a right secret from a wrong one.
            u2: the devices that shared their secrets.
            u3: those of them whose vectors are in the sum.

        Returns:
            The devices whose secrets stay unknown.
        """
        needed = frozenset(u2)  # on a ring, too, a device that dropped out has neighbours that did not
        if self._tried != len(self.answers):
            self._tried = len(self.answers)
            revealed = self._revealed()
            for device in sorted(needed - set(self._secrets)):
                key = keys[device]

                def good(secret: bytes, device: DeviceId = device, key: KeyEntry = key) -> bool:
                    if device in u3:
                        return commit_seed(secret, self._context.digest, device) == key.seed_commitment
                    return AgreementKey(secret).public == key.mask_public

                found = self._recovery.secret(revealed.get(device, {}), good)
                if found is not None:
                    self._secrets[device] = found
        return frozenset(needed - set(self._secrets))

    def masks(
        self,
        keys: Mapping[DeviceId, KeyEntry],
        bound: bytes,
        u3: Collection[DeviceId],
        dropped: list[DeviceId],
    ) -> Iterator[tuple[bytes, int]]:
        """The masks that are left in the sum, with the signs that take them off.

        Args:
            keys: the advertised keys.
            bound: what the masks are bound to.
            u3: the devices whose vectors are in the sum.
            dropped: those of U2 that are not in it.
        """
        for device in sorted(u3):
            yield self_mask_key(self._secrets[device], bound, device), -1
        for device in dropped:
            private = AgreementKey(self._secrets[device])
            for peer in sorted(self._context.neighbours[device] & set(u3)):
                shared = private.agree(keys[peer].mask_public)
                yield pair_mask_key(shared, bound, device, peer), -mask_sign(peer, device)

    def forget(self) -> None:
        """Drop the secrets: the sum is made."""
        self._secrets.clear()

    def fail(self, missing: frozenset[DeviceId]) -> NoReturn:
        """Say why these secrets are not known.

        Raises:
            WindowFailed: "threshold" when too few answered, "bad-shares" when answers do not fit their secrets.
        """
        revealed = self._revealed()
        t = self._context.threshold
        wrong = sorted(device for device in missing if len(revealed.get(device, {})) >= t)
        if len(self.answers) < t or not wrong:
            raise WindowFailed(
                "threshold", f"{len(self.answers)} devices answered; {t} shares of each secret are needed"
            )
        suspects = tuple(sorted(self._recovery.suspects | set(wrong)))
        raise WindowFailed(
            "bad-shares", f"no {t} of the shares of {', '.join(wrong[:3])} fit together", suspects
        )

    def _revealed(self) -> dict[DeviceId, dict[str, tuple[int, bytes]]]:
        """For each secret's owner: by device that answered, its point and its share."""
        revealed: dict[DeviceId, dict[str, tuple[int, bytes]]] = {}
        for device, message in self.answers.items():
            parts: tuple[RevealedShare, ...] = (*message.seeds, *message.keys)
            for entry in parts:
                point = self._context.points[device]
                revealed.setdefault(DeviceId(entry.device), {})[device] = (point, entry.share)
        return revealed
