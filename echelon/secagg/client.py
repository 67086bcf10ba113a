"""A device's side of one window of secure aggregation, as a state machine.

It follows Bonawitz et al., CCS 2017, figure 4 (active adversary), and trusts the server for nothing: every
list is held against the context, the roster and the privacy floor before a key, a masked vector or a share
leaves. Whatever contradicts them ends the window for this device, for good. Keys and masks live in one object
for one window; nothing of it is ever stored, so a restart is a dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from echelon.messages.envelope import Signer, verify_signature
from echelon.messages.floor import heads
from echelon.messages.handshake import (
    SHARE_BYTES,
    Advertise,
    Consistency,
    Deliver,
    Included,
    KeyEntry,
    KeyList,
    RevealedShare,
    Sealed,
    SealedShare,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.wire import DeviceId, Message
from echelon.secagg import shamir
from echelon.secagg.context import Context, consistency_statement, masks_bound
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.keys import (
    AgreementKey,
    commit_seed,
    open_shares,
    pair_mask_key,
    seal_shares,
    self_mask_key,
)
from echelon.secagg.prg import Masker
from echelon.secagg.roster import Roster

U32 = NDArray[np.uint32]
_Decision = KeyList | SharesList | Deliver | Included | Signatures
_Answer = TypeVar("_Answer", bound=Message)


EVALUATIONS = -1
"""What stands for the sum of evaluations among the numbers of blocks."""


class _Step(IntEnum):
    NEW = 0
    ADVERTISED = 1
    SHARED = 2
    UPLOADED = 3
    DECIDED = 4
    """An included set is known and stuck to, whether it is signed or leaves this device out."""
    UNMASKED = 5


class Client:
    """One device in one window.

    The rounds are called in order. A round asked for again with the same content gets the same answer; with
    other content it ends the window, and so does a second vector. Every method raises `Aborted`, with the
    reason, when this device must not go on; from then on every method does.

    Args:
        context: what the window is bound to.
        me: this device, a member of the cohort.
        signer: its identity; the public half stands on the roster.
        roster: the enrolled devices, already verified.
        entropy: source of this window's keys.
        evaluated: whether it has an evaluation of the window's commit to add.
        held: (front, back): its vector moves the blocks below `front` and those from `back` on; (0, 0): all.
        blocks: the blocks of the model that have coordinates.
    """

    def __init__(
        self,
        context: Context,
        me: DeviceId,
        signer: Signer,
        roster: Roster,
        entropy: Entropy,
        *,
        evaluated: bool = False,
        held: tuple[int, int] = (0, 0),
        blocks: Collection[int] = (),
    ) -> None:
        self.context = context
        self.me = me
        self._aborted: Aborted | None = None
        if me not in context.weights:
            raise self._abort(Abort.MEMBERS, f"{me} is not in the cohort")
        if any(device not in roster for device in context.weights) or roster.key(me) != signer.public:
            raise self._abort(Abort.KEYS, f"the cohort is not on the roster, or {me} has another key there")
        self._signer = signer
        self._roster = roster
        self._entropy = entropy
        self._evaluated, self._held_blocks, self._blocks = evaluated, held, tuple(blocks)
        self._step = _Step.NEW
        self._cipher = AgreementKey(entropy.token(32))
        self._mask_private = entropy.token(32)
        self._mask = AgreementKey(self._mask_private)
        self._seed = entropy.token(32)
        self._mine = self._own_entry()
        self._shown: dict[str, Message] = {}
        self._answers: dict[str, Message] = {}
        self._signers: frozenset[DeviceId] = frozenset()
        self._bound = b""
        self._sealing: dict[DeviceId, bytes] = {}
        """Secrets agreed on with neighbours in U1, for sealing shares."""
        self._masking: dict[DeviceId, bytes] = {}
        """The same, for masks."""
        self._held: dict[DeviceId, tuple[bytes, bytes]] = {}
        """Shares of others' mask keys and seeds, and of the own."""
        self._keys: KeyList | None = None
        self._adding: dict[int, frozenset[DeviceId]] = {}
        """Devices of U2 that add to each sum of some: evaluations, and each block; empty where they are too few."""
        self._u1: frozenset[DeviceId] = frozenset()
        self._u2: frozenset[DeviceId] = frozenset()
        self._u3: frozenset[DeviceId] = frozenset()
        self._shares = SharesList(window=context.window, devices=())
        self._upload_sha256 = b""

    @property
    def aborted(self) -> Abort | None:
        """Why this device left the window; None while it takes part."""
        return None if self._aborted is None else self._aborted.reason

    # ---- round 0 ---------------------------------------------------------------------------------

    def advertise(self) -> Advertise:
        """Round 0: this window's fresh public keys, signed."""
        self._alive()
        self._step = max(self._step, _Step.ADVERTISED)
        mine = self._mine
        return Advertise(
            window=self.context.window,
            cipher_public=mine.cipher_public,
            mask_public=mine.mask_public,
            seed_commitment=mine.seed_commitment,
            evaluated=mine.evaluated,
            front=mine.front,
            back=mine.back,
            signature=mine.signature,
        )

    def _own_entry(self) -> KeyEntry:
        unsigned = KeyEntry(
            device=self.me,
            cipher_public=self._cipher.public,
            mask_public=self._mask.public,
            seed_commitment=commit_seed(self._seed, self.context.digest, self.me),
            evaluated=self._evaluated,
            front=self._held_blocks[0],
            back=self._held_blocks[1],
            signature=bytes(64),
        )
        signature = self._signer.sign(self.context.advert_statement(unsigned))
        return unsigned.model_copy(update={"signature": signature})

    # ---- round 1 ---------------------------------------------------------------------------------

    def share_keys(self, keys: KeyList) -> Sealed:
        """Round 1: check U1, and share this window's secrets among the neighbours that are in it."""
        known = self._known(keys, _Step.ADVERTISED, Sealed)
        if known is not None:
            return known
        context = self.context
        self._check_keys(keys)
        self._keys = keys
        self._u1 = frozenset(DeviceId(entry.device) for entry in keys.entries)
        self._bound = context.bound(keys)
        for entry in keys.entries:
            device = DeviceId(entry.device)
            if device not in context.neighbours[self.me]:
                continue
            try:
                self._sealing[device] = self._cipher.agree(entry.cipher_public)
                self._masking[device] = self._mask.agree(entry.mask_public)
            except ValueError:
                raise self._abort(Abort.KEYS, f"a key of {device} is a point of low order") from None
        holders = sorted(context.holders(self.me) & self._u1)
        points = [context.points[device] for device in holders]
        of_mask = shamir.deal(self._mask_private, points, context.threshold, self._entropy)
        of_seed = shamir.deal(self._seed, points, context.threshold, self._entropy)
        entries = []
        for device, mask_share, seed_share in zip(holders, of_mask, of_seed, strict=True):
            if device == self.me:
                self._held[device] = (mask_share, seed_share)
            else:
                shared = self._sealing[device]
                sealed = seal_shares(shared, self._bound, self.me, device, mask_share + seed_share)
                entries.append(SealedShare(device=device, ciphertext=sealed))
        return self._done(keys, _Step.SHARED, Sealed(window=context.window, entries=tuple(entries)))

    def _check_keys(self, keys: KeyList) -> None:
        context = self.context
        names = tuple(entry.device for entry in keys.entries)
        self._check_list(names, frozenset(context.weights), "the key list")
        if self._mine not in keys.entries:
            raise self._abort(Abort.KEYS, f"the key list holds other keys of {self.me} than it advertised")
        publics = [key for entry in keys.entries for key in (entry.cipher_public, entry.mask_public)]
        if len(set(publics)) != len(publics):
            raise self._abort(Abort.KEYS, "one key stands twice in the key list")
        near = context.holders(self.me)
        for entry in keys.entries:
            if entry.device not in near:
                continue  # no secret is shared with it
            signed = context.advert_statement(entry)
            if not verify_signature(self._roster.key(entry.device), entry.signature, signed):
                raise self._abort(
                    Abort.KEYS, f"the keys of {entry.device} are not signed by it for this window"
                )

    # ---- round 2 ---------------------------------------------------------------------------------

    def adds_evaluation(self, shares: SharesList) -> bool:
        """Whether this device's evaluation may be in the vector that it masks for U2.

        Evaluations are a sum of their own: a device adds to it only if enough others of U2 signed that they do, so
        many that the floor holds for that sum whoever drops out.
        """
        return self.me in self._sums_of_some(self._within(shares)).get(EVALUATIONS, ())

    def adds_blocks(self, shares: SharesList) -> frozenset[int]:
        """The blocks that this device's vector may move when it is masked for U2.

        Where models are cut differently, each block is a sum of its own, over those devices that hold it: the rule is
        that for evaluations. Coordinates of its other blocks it leaves at 0.
        """
        sums = self._sums_of_some(self._within(shares))
        return frozenset(block for block in self._blocks if self.me in sums[block])

    def _within(self, shares: SharesList) -> frozenset[DeviceId]:
        return frozenset(DeviceId(device) for device in shares.devices) & self._u1

    def _sums_of_some(self, u2: frozenset[DeviceId]) -> dict[int, frozenset[DeviceId]]:
        """Who of U2 adds to each sum that not everybody adds to: those that signed that they do, or nobody."""
        near = self.context.holders(self.me)
        entries = [
            entry
            for entry in (() if self._keys is None else self._keys.entries)
            if entry.device in u2
            # Keys of neighbours were checked when they came; on a ring others' were not.
            and (
                entry.device in near
                or verify_signature(
                    self._roster.key(entry.device), entry.signature, self.context.advert_statement(entry)
                )
            )
        ]
        found = {EVALUATIONS: {DeviceId(entry.device) for entry in entries if entry.evaluated}}
        for block in self._blocks:
            found[block] = {
                DeviceId(entry.device) for entry in entries if block < entry.front or block >= entry.back
            }
        return {
            what: frozenset(who) if self.context.may_add(len(who), len(u2)) else frozenset()
            for what, who in found.items()
        }

    def masked_input(self, shares: SharesList, delivered: Deliver, vector: U32) -> U32:
        """Round 2: open the shares that were handed over, and mask the vector.

        The caller must have *spent* of this update on disk before the returned vector leaves the device: once
        it left, it may be in a sum. There is no second vector under one window's masks.

        Args:
            shares: U2.
            delivered: the ciphertexts of the neighbours in U2.
            vector: uint32[length], contiguous.

        Returns:
            uint32[length], a new array.
        """
        self._expect(shares, _Step.SHARED)
        self._expect(delivered, _Step.SHARED)
        context = self.context
        u2 = self._check_list(shares.devices, self._u1, "the shares list")
        peers = sorted(u2 & context.neighbours[self.me])
        if delivered.to != self.me or [entry.device for entry in delivered.entries] != peers:
            raise self._abort(Abort.DELIVERY, "the shares handed over are not those of the neighbours in U2")
        if vector.dtype != np.uint32 or vector.shape != (context.length,) or not vector.flags.c_contiguous:
            raise self._abort(
                Abort.LENGTH,
                f"a {vector.dtype}{list(vector.shape)}, the window is of uint32[{context.length}]",
            )
        for entry in delivered.entries:
            sender = DeviceId(entry.device)
            opened = open_shares(self._sealing[sender], self._bound, sender, self.me, entry.ciphertext)
            # A share that does not open is one the sender lost for itself: others may hold enough of them.
            if opened is not None and len(opened) == 2 * SHARE_BYTES:
                self._held[sender] = (opened[:SHARE_BYTES], opened[SHARE_BYTES:])
        masked, bound = vector.copy(), masks_bound(self._bound, shares)
        masks = [(self_mask_key(self._seed, bound, self.me), 1)]
        for peer in peers:
            key = pair_mask_key(self._masking[peer], bound, self.me, peer)
            masks.append((key, mask_sign(self.me, peer)))
        Masker().add(masked, masks)
        self._u2, self._adding = u2, self._sums_of_some(u2)
        self._upload_sha256 = hashlib.sha256(masked.astype("<u4", copy=False).data).digest()
        self._shown[shares.kind] = self._shares = shares
        self._step = _Step.UPLOADED
        return masked

    # ---- round 3 ---------------------------------------------------------------------------------

    def consistency(self, included: Included) -> Consistency:
        """Round 3: sign U3, if the own upload is in it as it was made and the floor holds."""
        known = self._known(included, _Step.UPLOADED, Consistency)
        if known is not None:
            return known
        names = tuple(entry.device for entry in included.entries)
        u3 = self._check_list(names, self._u2, "the included set")
        named = next(entry.upload_sha256 for entry in included.entries if entry.device == self.me)
        if named != self._upload_sha256:
            raise self._abort(
                Abort.UPLOAD, f"the included set names another upload of {self.me} than it made"
            )
        floor = heads(self.context.k_min, self.context.colluding)
        for what, adding in self._adding.items():
            if adding and len(adding & u3) < floor:
                name = "evaluations" if what == EVALUATIONS else f"to block {what}"
                raise self._abort(
                    Abort.FLOOR,
                    f"{len(adding & u3)} devices of the included set added {name}, the floor is {floor}",
                )
        self._u3 = u3
        signature = self._signer.sign(self._statement(included))
        return self._done(included, _Step.DECIDED, Consistency(window=included.window, signature=signature))

    def left_out(self, included: Included) -> None:
        """Note an included set without this device, which uploaded. It will sign no other one in this window."""
        if self._shown.get(included.kind) == included:
            self._alive()
            return
        self._expect(included, _Step.UPLOADED)
        names = frozenset(DeviceId(entry.device) for entry in included.entries)
        if self.me in names or not names <= self._u2:
            raise self._abort(Abort.MEMBERS, f"not an included set of this window without {self.me}")
        self._u3 = names
        self._shown[included.kind] = included
        self._step = _Step.DECIDED

    def signed_without_me(self, signatures: Signatures) -> bool:
        """Whether at least t neighbours signed exactly the included set that leaves this one out.

        Then no sum with this device's upload can be unmasked: that would take t of those who hold its shares
        to have signed another set, two such groups share an honest device, and that signs once. Only then may
        the update be offered again.
        """
        self._alive()
        included = self._shown.get(Included.kind)
        if (
            not isinstance(included, Included)
            or self.me in self._u3
            or signatures.window != self.context.window
        ):
            return False
        statement = self._statement(included)
        valid = sum(
            entry.device in self._u3 & self.context.holders(self.me)
            and verify_signature(self._roster.key(entry.device), entry.signature, statement)
            for entry in signatures.entries
        )
        return valid >= self.context.threshold

    def _statement(self, included: Included) -> bytes:
        return consistency_statement(self._bound, self._shares, included)

    # ---- round 4 ---------------------------------------------------------------------------------

    def unmask(self, signatures: Signatures) -> Unmask:
        """Round 4: once t of this device and its neighbours signed the U3 that it signed, reveal what unmasks
        it.

        For a device in U3 that is its seed's share, for one in U2 without U3 its mask key's: never both, as
        the two sets are disjoint and neither ever changes for this client.
        """
        known = self._known(signatures, _Step.DECIDED, Unmask)
        if known is not None:
            return known
        context = self.context
        included = self._shown[Included.kind]
        if not isinstance(included, Included) or self.me not in self._u3:
            raise self._abort(Abort.SIGNATURES, f"asked to unmask a sum that leaves {self.me} out")
        statement = self._statement(included)
        near, holders = 0, context.holders(self.me)
        for entry in signatures.entries:
            device = DeviceId(entry.device)
            if device not in self._u3:
                raise self._abort(
                    Abort.SIGNATURES, f"a signature of {device}, which is not in the included set"
                )
            if device not in holders:
                continue  # it counts for its own neighbours
            if not verify_signature(self._roster.key(device), entry.signature, statement):
                raise self._abort(Abort.SIGNATURES, f"{device} signed another included set")
            near += 1
        if near < context.threshold:
            raise self._abort(
                Abort.THRESHOLD, f"{near} signatures of the included set, {context.threshold} needed"
            )
        self._check_floor(self._u3, "the included set")
        holding = sorted(self._held)
        seeds = tuple(RevealedShare(device=d, share=self._held[d][1]) for d in holding if d in self._u3)
        dropped = self._u2 - self._u3
        keys = tuple(RevealedShare(device=d, share=self._held[d][0]) for d in holding if d in dropped)
        return self._done(signatures, _Step.UNMASKED, Unmask(window=context.window, seeds=seeds, keys=keys))

    # ---- what every round needs ------------------------------------------------------------------

    def _alive(self) -> None:
        if self._aborted is not None:
            raise self._aborted

    def _abort(self, reason: Abort, detail: str) -> Aborted:
        self._aborted = Aborted(reason, f"window {self.context.window}: {detail}")
        return self._aborted

    def _expect(self, message: _Decision, step: _Step) -> None:
        """Refuse a message of another window, a different one of a kind that was shown, or one out of turn."""
        self._alive()
        if message.window != self.context.window:
            raise self._abort(Abort.WINDOW, f"a {message.kind} of window {message.window}")
        if self._shown.get(message.kind, message) != message:
            raise self._abort(Abort.FORK, f"two different {message.kind} messages were shown to {self.me}")
        if self._step is not step:
            raise self._abort(
                Abort.ORDER, f"a {message.kind} message while the device is {self._step.name.lower()}"
            )

    def _known(self, message: _Decision, step: _Step, answer: type[_Answer]) -> _Answer | None:
        """The answer that was given to exactly this message before; otherwise None, if it is its turn."""
        if self._aborted is None and self._shown.get(message.kind) == message:
            found = self._answers.get(message.kind)
            if isinstance(found, answer):
                return found
        self._expect(message, step)
        return None

    def _done(self, message: _Decision, step: _Step, answer: _Answer) -> _Answer:
        self._shown[message.kind] = message
        self._answers[message.kind] = answer
        self._step = step
        return answer

    def _check_list(
        self, names: tuple[str, ...], within: frozenset[DeviceId], what: str
    ) -> frozenset[DeviceId]:
        """A list's devices: all of them allowed, this one among them, enough around it, and the floor holds."""
        devices = frozenset(DeviceId(name) for name in names)
        if not devices <= within:
            raise self._abort(
                Abort.MEMBERS, f"{what} names {', '.join(sorted(devices - within)[:3])}, which it must not"
            )
        if len(devices) != len(names) or self.me not in devices:
            raise self._abort(Abort.MEMBERS, f"{what} leaves {self.me} out, or names a device twice")
        near = len(devices & self.context.holders(self.me))
        if near < self.context.threshold:
            raise self._abort(
                Abort.THRESHOLD, f"{what} has {near} of {self.context.threshold} devices needed"
            )
        self._check_floor(devices, what)
        return devices

    def _check_floor(self, devices: frozenset[DeviceId], what: str) -> None:
        try:
            self.context.check_floor(devices, what)
            self.context.check_ring(devices, what)
        except Aborted as below:
            self._aborted = below
            raise


def mask_sign(device: str, peer: str) -> int:
    """The sign with which `device` adds the mask that it shares with `peer`: the two cancel in the sum."""
    return 1 if device < peer else -1
