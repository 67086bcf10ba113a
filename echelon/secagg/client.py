"""A device's side of one window of secure aggregation, as a state machine.

It follows Bonawitz et al., CCS 2017, figure 4 (active adversary), and trusts the server for nothing: every
list is held against the context, the roster and the privacy floor before a key, a masked vector or a share
leaves. Whatever contradicts them ends the window for this device, for good. Keys and masks live in one object
for one window; nothing of it is ever stored, so a restart is a dropout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from echelon.messages.envelope import Signer
from echelon.messages.good_signatures import verify_once
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Deliver,
    Included,
    KeyEntry,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.wire import DeviceId
from echelon.secagg.context import Context, consistency_statement, masks_bound
from echelon.secagg.device_secrets import DeviceSecrets
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.partial_sums import EVALUATIONS, PartialSums, check_included, over_rank_blocks
from echelon.secagg.prg import ALONE, Masker, RingVector, Spread, ring_bytes
from echelon.secagg.roster import Roster
from echelon.secagg.turns import ClientStep, Turns


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
        spread: how its masks are made: alone, or by threads that the caller has.
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
        spread: Spread = ALONE,
    ) -> None:
        self.context = context
        self._masker = Masker(spread)
        self.me = me
        self._turns = Turns(context.window, me)
        if me not in context.weights:
            raise self._turns.abort(Abort.MEMBERS, f"{me} is not in the cohort")
        if any(device not in roster for device in context.weights) or roster.key(me) != signer.public:
            raise self._turns.abort(
                Abort.KEYS, f"the cohort is not on the roster, or {me} has another key there"
            )
        self._signer = signer
        self._roster = roster
        self._evaluated, self._held_blocks, self._blocks = evaluated, held, tuple(blocks)
        self._sums = PartialSums(context, me, roster, self._blocks)
        self._secrets = DeviceSecrets(context, me, entropy)
        self._mine = self._own_entry()
        self._signers: frozenset[DeviceId] = frozenset()
        self._bound = b""
        self._keys: KeyList | None = None
        self._adding: dict[int, frozenset[DeviceId]] = {}
        """Devices of U2 that add to each sum of some: evaluations, and each block; empty where the floor
        would not hold."""
        self._u1: frozenset[DeviceId] = frozenset()
        self._u2: frozenset[DeviceId] = frozenset()
        self._u3: frozenset[DeviceId] = frozenset()
        self._shares = SharesList(window=context.window, devices=())
        self._upload_sha256 = b""

    @property
    def aborted(self) -> Abort | None:
        """Why this device left the window; None while it takes part."""
        left = self._turns.aborted
        return None if left is None else left.reason

    # ---- round 0 ---------------------------------------------------------------------------------

    def advertise(self) -> Advertise:
        """Round 0: this window's fresh public keys, signed."""
        self._turns.check_alive()
        self._turns.step = max(self._turns.step, ClientStep.ADVERTISED)
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
            cipher_public=self._secrets.cipher_public,
            mask_public=self._secrets.mask_public,
            seed_commitment=self._secrets.seed_commitment,
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
        known = self._turns.answered(keys, ClientStep.ADVERTISED, Sealed)
        if known is not None:
            return known
        context = self.context
        self._check_keys(keys)
        self._keys = keys
        self._u1 = frozenset(DeviceId(entry.device) for entry in keys.entries)
        self._bound = context.bound(keys)
        self._secrets.bind(self._bound)
        for entry in keys.entries:
            if entry.device not in context.neighbours[self.me]:
                continue
            try:
                self._secrets.agree(entry)
            except ValueError:
                raise self._turns.abort(
                    Abort.KEYS, f"a key of {entry.device} is a point of low order"
                ) from None
        entries = self._secrets.deal(context.holders(self.me) & self._u1)
        return self._turns.done(keys, ClientStep.SHARED, Sealed(window=context.window, entries=entries))

    def _check_keys(self, keys: KeyList) -> None:
        context = self.context
        names = tuple(entry.device for entry in keys.entries)
        self._check_list(names, frozenset(context.weights), "the key list")
        if self._mine not in keys.entries:
            raise self._turns.abort(
                Abort.KEYS, f"the key list holds other keys of {self.me} than it advertised"
            )
        publics = [key for entry in keys.entries for key in (entry.cipher_public, entry.mask_public)]
        if len(set(publics)) != len(publics):
            raise self._turns.abort(Abort.KEYS, "one key stands twice in the key list")
        near = context.holders(self.me)
        for entry in keys.entries:
            if entry.device not in near:
                continue  # no secret is shared with it
            signed = context.advert_statement(entry)
            if not verify_once(self._roster.key(entry.device), entry.signature, signed):
                raise self._turns.abort(
                    Abort.KEYS, f"the keys of {entry.device} are not signed by it for this window"
                )

    # ---- round 2 ---------------------------------------------------------------------------------

    def adds_evaluation(self, shares: SharesList) -> bool:
        """Whether this device's evaluation may be in the vector that it masks for U2.

        Evaluations are a sum of their own: a device adds to it only if enough others of U2 signed that they do, so
        many that the floor holds for that sum whoever drops out.
        """
        return self.me in self._sums.adding(self._keys, self._within(shares)).get(EVALUATIONS, ())

    def adds_blocks(self, shares: SharesList) -> frozenset[int]:
        """The blocks that this device's vector may move when it is masked for U2.

        Where models are cut differently, or devices have different ranks, each block is a sum of its own, over those
        devices that hold it: the rule is that for evaluations. Coordinates of its other blocks it leaves at 0.
        """
        sums = self._sums.adding(self._keys, self._within(shares))
        return frozenset(block for block in self._blocks if self.me in sums[block])

    def block_caps(self, shares: SharesList) -> dict[int, int]:
        """Rank blocks in which this device weighs less than in the window: the weight that it has there, by block."""
        mine = self.context.weights[self.me]
        sums = over_rank_blocks(self.context, self._within(shares))
        return {block: one.cap for block, one in sums.items() if self.me in one.devices and one.cap < mine}

    def _within(self, shares: SharesList) -> frozenset[DeviceId]:
        return frozenset(DeviceId(device) for device in shares.devices) & self._u1

    def masked_input(
        self, shares: SharesList, delivered: Deliver, vector: RingVector, *, in_place: bool = False
    ) -> RingVector:
        """Round 2: open the shares that were handed over, and mask the vector.

        The caller must have *spent* of this update on disk before the returned vector leaves the device: once
        it left, it may be in a sum. There is no second vector under one window's masks.

        Args:
            shares: U2.
            delivered: the ciphertexts of the neighbours in U2.
            vector: uint32[length], or uint16[length] on the ring of 16 bits; contiguous.
            in_place: whether the masks may be added to `vector` itself, which then no longer shows the update.

        Returns:
            `vector` with `in_place`; else a new array of the same type and length.
        """
        self._turns.expect(shares, ClientStep.SHARED)
        self._turns.expect(delivered, ClientStep.SHARED)
        context = self.context
        u2 = self._check_list(shares.devices, self._u1, "the shares list")
        peers = sorted(u2 & context.neighbours[self.me])
        if delivered.to != self.me or [entry.device for entry in delivered.entries] != peers:
            raise self._turns.abort(
                Abort.DELIVERY, "the shares handed over are not those of the neighbours in U2"
            )
        if not context.fits(vector) or not vector.flags.c_contiguous:
            raise self._turns.abort(
                Abort.LENGTH,
                f"a {vector.dtype}{list(vector.shape)}, the window is of {context.dtype}[{context.length}]",
            )
        for entry in delivered.entries:
            self._secrets.unseal(entry)
        masked = vector if in_place else vector.copy()
        self._masker.add(masked, self._secrets.masks(peers, masks_bound(self._bound, shares)))
        self._u2, self._adding = u2, self._sums.adding(self._keys, u2)
        self._upload_sha256 = hashlib.sha256(ring_bytes(masked)).digest()
        self._turns.shown[shares.kind] = self._shares = shares
        self._turns.step = ClientStep.UPLOADED
        return masked

    @property
    def upload_sha256(self) -> bytes:
        """SHA-256 of the masked vector's bytes; empty before there is one."""
        return self._upload_sha256

    # ---- round 3 ---------------------------------------------------------------------------------

    def consistency(self, included: Included) -> Consistency:
        """Round 3: sign U3, if the own upload is in it as it was made and the floor holds."""
        known = self._turns.answered(included, ClientStep.UPLOADED, Consistency)
        if known is not None:
            return known
        names = tuple(entry.device for entry in included.entries)
        u3 = self._check_list(names, self._u2, "the included set")
        named = next(entry.upload_sha256 for entry in included.entries if entry.device == self.me)
        if named != self._upload_sha256:
            raise self._turns.abort(
                Abort.UPLOAD, f"the included set names another upload of {self.me} than it made"
            )
        self._hold(lambda: check_included(self.context, self._adding, u2=self._u2, u3=u3))
        self._u3 = u3
        signature = self._signer.sign(self._statement(included))
        return self._turns.done(
            included, ClientStep.DECIDED, Consistency(window=included.window, signature=signature)
        )

    def left_out(self, included: Included) -> None:
        """Note an included set without this device, which uploaded. It will sign no other one in this window."""
        if self._turns.shown.get(included.kind) == included:
            self._turns.check_alive()
            return
        self._turns.expect(included, ClientStep.UPLOADED)
        names = frozenset(DeviceId(entry.device) for entry in included.entries)
        if self.me in names or not names <= self._u2:
            raise self._turns.abort(Abort.MEMBERS, f"not an included set of this window without {self.me}")
        self._u3 = names
        self._turns.shown[included.kind] = included
        self._turns.step = ClientStep.DECIDED

    def signed_without_me(self, signatures: Signatures) -> bool:
        """Whether at least t neighbours signed exactly the included set that leaves this one out.

        Then no sum with this device's upload can be unmasked: that would take t of those who hold its shares
        to have signed another set, two such groups share an honest device, and that signs once. Only then may
        the update be offered again.
        """
        self._turns.check_alive()
        included = self._turns.shown.get(Included.kind)
        if (
            not isinstance(included, Included)
            or self.me in self._u3
            or signatures.window != self.context.window
        ):
            return False
        statement = self._statement(included)
        valid = sum(
            entry.device in self._u3 & self.context.holders(self.me)
            and verify_once(self._roster.key(entry.device), entry.signature, statement)
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
        known = self._turns.answered(signatures, ClientStep.DECIDED, Unmask)
        if known is not None:
            return known
        context = self.context
        included = self._turns.shown[Included.kind]
        if not isinstance(included, Included) or self.me not in self._u3:
            raise self._turns.abort(Abort.SIGNATURES, f"asked to unmask a sum that leaves {self.me} out")
        statement = self._statement(included)
        near, holders = 0, context.holders(self.me)
        for entry in signatures.entries:
            device = DeviceId(entry.device)
            if device not in self._u3:
                raise self._turns.abort(
                    Abort.SIGNATURES, f"a signature of {device}, which is not in the included set"
                )
            if device not in holders:
                continue  # it counts for its own neighbours
            if not verify_once(self._roster.key(device), entry.signature, statement):
                raise self._turns.abort(Abort.SIGNATURES, f"{device} signed another included set")
            near += 1
        if near < context.threshold:
            raise self._turns.abort(
                Abort.THRESHOLD, f"{near} signatures of the included set, {context.threshold} needed"
            )
        self._check_floor(self._u3, "the included set")
        dropped = self._u2 - self._u3
        answer = Unmask(
            window=context.window,
            seeds=self._secrets.seed_shares(self._u3),
            keys=self._secrets.key_shares(dropped),
        )
        return self._turns.done(signatures, ClientStep.UNMASKED, answer)

    # ---- what every round needs ------------------------------------------------------------------

    def _check_list(
        self, names: tuple[str, ...], within: frozenset[DeviceId], what: str
    ) -> frozenset[DeviceId]:
        """A list's devices: all of them allowed, this one among them, enough around it, and the floor holds."""
        devices = frozenset(DeviceId(name) for name in names)
        if not devices <= within:
            raise self._turns.abort(
                Abort.MEMBERS, f"{what} names {', '.join(sorted(devices - within)[:3])}, which it must not"
            )
        if len(devices) != len(names) or self.me not in devices:
            raise self._turns.abort(Abort.MEMBERS, f"{what} leaves {self.me} out, or names a device twice")
        near = len(devices & self.context.holders(self.me))
        if near < self.context.threshold:
            raise self._turns.abort(
                Abort.THRESHOLD, f"{what} has {near} of {self.context.threshold} devices needed"
            )
        self._check_floor(devices, what)
        return devices

    def _check_floor(self, devices: frozenset[DeviceId], what: str) -> None:
        self._hold(lambda: self.context.check_floor(devices, what))
        self._hold(lambda: self.context.check_ring(devices, what))

    def _hold(self, check: Callable[[], None]) -> None:
        """Leave the window for good if a check fails."""
        try:
            check()
        except Aborted as below:
            self._turns.aborted = below
            raise
