"""The keys, masks and shares of one device in one window. Nothing of it is ever stored: a restart is a dropout."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from echelon.messages.handshake import SHARE_BYTES, KeyEntry, RevealedShare, SealedShare
from echelon.messages.wire import DeviceId
from echelon.secagg import shamir
from echelon.secagg.context import Context
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import (
    AgreementKey,
    commit_seed,
    mask_sign,
    open_shares,
    pair_mask_key,
    seal_shares,
    self_mask_key,
)


class DeviceSecrets:
    """What one device knows alone, and what it holds for others.

    Args:
        context: what the window is bound to.
        me: this device.
        entropy: source of its keys.

    Attributes:
        cipher_public: key with which others seal shares for this device, 32 bytes.
        mask_public: key of its masks with others, 32 bytes.
        seed_commitment: SHA-256 that binds it to the seed of its own mask.
    """

    def __init__(self, context: Context, me: DeviceId, entropy: Entropy) -> None:
        self._context, self._me, self._entropy = context, me, entropy
        self._cipher = AgreementKey(entropy.token(32))
        self._mask_private = entropy.token(32)
        self._mask = AgreementKey(self._mask_private)
        self._seed = entropy.token(32)
        self._bound = b""
        self._sealing: dict[DeviceId, bytes] = {}
        """Secrets agreed on with neighbours in U1, for sealing shares."""
        self._masking: dict[DeviceId, bytes] = {}
        """The same, for masks."""
        self._held: dict[DeviceId, tuple[bytes, bytes]] = {}
        """Shares of others' mask keys and seeds, and of the own."""
        self.cipher_public, self.mask_public = self._cipher.public, self._mask.public
        self.seed_commitment = commit_seed(self._seed, context.digest, me)

    def bind(self, bound: bytes) -> None:
        """Bind all that is sealed from now on to U1; `bound` is the digest of context and U1, 32 bytes."""
        self._bound = bound

    def agree(self, entry: KeyEntry) -> None:
        """Agree on secrets with a neighbour.

        Raises:
            ValueError: a key of it is a point of low order.
        """
        device = DeviceId(entry.device)
        self._sealing[device] = self._cipher.agree(entry.cipher_public)
        self._masking[device] = self._mask.agree(entry.mask_public)

    def deal(self, holders: Iterable[DeviceId]) -> tuple[SealedShare, ...]:
        """Share mask key and seed among the holders, this device among them: what is sealed for each of the others."""
        context, ordered = self._context, sorted(holders)
        points = [context.points[device] for device in ordered]
        of_mask = shamir.deal(self._mask_private, points, context.threshold, self._entropy)
        of_seed = shamir.deal(self._seed, points, context.threshold, self._entropy)
        entries = []
        for device, mask_share, seed_share in zip(ordered, of_mask, of_seed, strict=True):
            if device == self._me:
                self._held[device] = (mask_share, seed_share)
            else:
                shared = self._sealing[device]
                sealed = seal_shares(shared, self._bound, self._me, device, mask_share + seed_share)
                entries.append(SealedShare(device=device, ciphertext=sealed))
        return tuple(entries)

    def unseal(self, entry: SealedShare) -> None:
        """Open what a neighbour sealed for this device."""
        sender = DeviceId(entry.device)
        opened = open_shares(self._sealing[sender], self._bound, sender, self._me, entry.ciphertext)
        # A share that does not open is one the sender lost for itself: others may hold enough of them.
        if opened is not None and len(opened) == 2 * SHARE_BYTES:
            self._held[sender] = (opened[:SHARE_BYTES], opened[SHARE_BYTES:])

    def masks(self, peers: Iterable[DeviceId], bound: bytes) -> list[tuple[bytes, int]]:
        """The keys and signs of this device's masks: its own, and one with each peer; `bound` is the masks' binding."""
        masks = [(self_mask_key(self._seed, bound, self._me), 1)]
        for peer in peers:
            key = pair_mask_key(self._masking[peer], bound, self._me, peer)
            masks.append((key, mask_sign(self._me, peer)))
        return masks

    def seed_shares(self, devices: Collection[DeviceId]) -> tuple[RevealedShare, ...]:
        """The shares that it holds of these devices' seeds."""
        return tuple(
            RevealedShare(device=d, share=self._held[d][1]) for d in sorted(self._held) if d in devices
        )

    def key_shares(self, devices: Collection[DeviceId]) -> tuple[RevealedShare, ...]:
        """The shares that it holds of these devices' mask keys."""
        return tuple(
            RevealedShare(device=d, share=self._held[d][0]) for d in sorted(self._held) if d in devices
        )
