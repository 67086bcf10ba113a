"""A device in a cohort: from the list of members to its masked update and its shares.

`spent` is stored before the masked form of an offer leaves. A cohort under way is never stored: a restart drops out of
it, since its keys are gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.blocks import blocks_of, holds
from echelon.laws.cohort import context_of
from echelon.laws.rank_blocks import Places, reach_of
from echelon.laws.update_encoding import UpdateEncoder, loss_units
from echelon.laws.versions import KnownVersions
from echelon.messages.adapter import F32
from echelon.messages.boundary import Cohort, Masked, Member
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Payload
from echelon.messages.handshake import Deliver, Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import DeviceId
from echelon.rounds.device.state import DeviceState, Offer
from echelon.rounds.effects import Effect, Publish, Save
from echelon.secagg.client import Client
from echelon.secagg.entropy import Entropy
from echelon.secagg.prg import ALONE, Spread, ring_bytes
from echelon.secagg.ring import pack_vector
from echelon.secagg.roster import Roster

RoundDecision = KeyList | SharesList | Included | Signatures | Deliver


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureIdentity:
    """Who a device is in secure aggregation.

    Attributes:
        me: its name.
        signer: its signing key.
        roster: the keys of all actors.
        entropy: of keys, masks and rounding.
    """

    me: DeviceId
    signer: Signer
    roster: Roster
    entropy: Entropy


@dataclass(slots=True)
class CohortRound:
    """One window that this device is in.

    Attributes:
        window: its number.
        commit: that the boundary stands on.
        client: the device's side of secure aggregation.
        evaluation: (Σ loss, tokens) of an evaluation of that commit which it signed that it has, and the integers of
            the manifest's metrics; zeros if it has none.
        phase: what it waits for, or how it ended.
        shares: the members that sent shares.
        delivered: the shares that are for this device.
        included: devices of the set that this device signed.
        signed_out: whether a threshold of the cohort signed a set without this device.
    """

    window: int
    commit: int
    client: Client
    evaluation: tuple[int, ...] = (0, 0)
    phase: str = "keys"
    shares: SharesList | None = None
    delivered: Deliver | None = None
    included: tuple[str, ...] = ()
    signed_out: bool = False


class CohortMember:
    """The windows that a device takes part in, one after the other.

    Args:
        manifest: the signed terms.
        identity: who the device is.
        versions: what it knows of versions.
        state: what survives a restart.
        spread: how its masks are made.

    Attributes:
        cohort: the window that it is in.
        held: a cohort with this device, and its offset, that names versions which are not derived yet.
        blocks: where each block lies in the vector that is a sum of its own: blocks of a split model, or rank blocks;
            none where everybody moves everything.
    """

    def __init__(
        self,
        manifest: RunManifest,
        identity: SecureIdentity,
        versions: KnownVersions,
        state: DeviceState,
        spread: Spread = ALONE,
    ) -> None:
        self._spread = spread
        self._manifest, self._identity, self._versions, self._state = manifest, identity, versions, state
        self._nothing = (0,) * (2 + 2 * len(manifest.metrics))
        """What a device without an evaluation adds."""
        self._encoder = UpdateEncoder(manifest.secure)
        self._named = -1
        """The newest window whose cohort named this device's offer."""
        self.blocks = blocks_of(manifest)
        self.cohort: CohortRound | None = None
        self.held: tuple[Cohort, int] | None = None

    # ---- which windows ---------------------------------------------------------------------------

    def was_named(self, window: int) -> bool:
        """Whether that window's cohort had this device's check-in, in it or in one that it refused: it is used up."""
        return window in (self._state.member_of, self._named)

    def forget_held(self, window: int) -> None:
        """This window has ended: a cohort that waits for versions, and is no newer, is of no use."""
        if self.held is not None and self.held[0].window <= window:
            self.held = None

    def signed_out(self, window: int) -> bool:
        """Whether this device is in that window, and a threshold of its cohort signed a set without this device."""
        cohort = self.cohort
        return cohort is not None and cohort.window == window and cohort.signed_out

    def join(self, message: Cohort, offset: int, *, live_from: int, offer: Offer | None) -> list[Effect]:
        """Take part in a window with this device's offer.

        Args:
            message: the cohort.
            offset: where it stands on `control`.
            live_from: cohorts before this offset belong to an earlier life.
            offer: the device's offer.

        Raises:
            ProtocolError: the cohort says other things than the device or the gate; the device stays out of it.
        """
        mine = next((member for member in message.members if member.device == self._identity.me), None)
        if mine is None:
            return []
        if offset < live_from:
            # Seen at a start: a device that lost its state must not number two updates alike.
            self._state.offers = max(self._state.offers, mine.offer)
        if offer is None or (self._state.member_of >= message.window and self.cohort is not None):
            return []
        if mine.offer != offer.number or not offer.unspent:
            return []  # an older cohort, read again after a restart
        self._named = message.window
        if offset < live_from:
            self._state.member_of = message.window
            return []  # it stood there before this start: keys may have been sent for it, and they are gone
        self.held = None
        self._check_entry(message, mine, offer)
        context = context_of(message, self._manifest, self._versions.dim, self._identity.roster)
        self._check_merge_version(message)
        if self._versions.missing(message.bases):
            self.held = message, offset
            return []
        evaluation = self._evaluation_of(message.commit)
        who = self._identity
        client = Client(
            context, who.me, who.signer, who.roster, who.entropy,
            evaluated=self._manifest.exchange.report_loss and evaluation[1] > 0,
            held=offer.update.held, blocks=self.blocks, spread=self._spread,
        )  # fmt: skip
        self._state.member_of = message.window
        self.cohort = CohortRound(message.window, message.commit, client, evaluation)
        return [Publish("handshake", client.advertise(), message.window)]

    def _check_entry(self, message: Cohort, mine: Member, offer: Offer) -> None:
        """The cohort says of this device what it offered, and names the adapter that it trained from."""
        update, me = offer.update, self._identity.me
        entry_fields = (mine.n, mine.base_version, mine.shards, mine.edge, mine.jobs)
        shards = tuple(sorted(update.shards))
        if entry_fields != (offer.n, update.base_version, shards, update.edge, update.jobs):
            raise ProtocolError(
                f"window {message.window}: the cohort says other things of {me} than it offered"
            )
        known = {base.version: base.sha256 for base in message.bases}
        if known.get(update.base_version) != update.base_sha256:
            raise ProtocolError(
                f"window {message.window}: the cohort's bases do not hold the one that {me} trained from"
            )

    def _check_merge_version(self, message: Cohort) -> None:
        """The version that a sum is merged into is no older than one on which this device released shares.

        That it exists, and what it is, the list of bases says: the guard of pairs rests on it.
        """
        released = self._state.released[0]
        if message.version < released:
            raise ProtocolError(
                f"window {message.window}: its sum is to be merged into version {message.version}, and "
                f"{self._identity.me} released shares for one on version {released}"
            )

    def _evaluation_of(self, commit: int) -> tuple[int, ...]:
        """(Σ loss, tokens, metrics) of this commit that is in no sum yet; zeros if there is none."""
        evaluation = self._state.evaluation
        if evaluation is None or evaluation[0] != commit or len(evaluation) != 1 + len(self._nothing):
            return self._nothing
        return evaluation[1:]

    # ---- one window ------------------------------------------------------------------------------

    def take(self, message: RoundDecision, offer: Offer | None) -> list[Effect]:
        """Answer a decision of the window that this device is in; one of another window is passed over.

        Raises:
            ProtocolError: it breaks the protocol; the device takes no further part in the window.
        """
        cohort = self.cohort
        if cohort is None or message.window != cohort.window or cohort.phase == "aborted":
            return []
        try:
            match message:
                case KeyList():
                    return self._keys(cohort, message)
                case SharesList():
                    cohort.shares = message
                    return self._upload(cohort, offer)
                case Deliver():
                    cohort.delivered = message
                    return self._upload(cohort, offer)
                case Included():
                    return self._included(cohort, message)
                case Signatures():
                    return self._signatures(cohort, message)
        except ProtocolError:
            cohort.phase = "aborted"
            raise

    def _keys(self, cohort: CohortRound, message: KeyList) -> list[Effect]:
        if cohort.phase != "keys":
            return []
        cohort.phase = "shares"
        return [Publish("handshake", cohort.client.share_keys(message), cohort.window)]

    def _included(self, cohort: CohortRound, message: Included) -> list[Effect]:
        if cohort.phase != "uploaded":
            return []
        if self._identity.me not in {entry.device for entry in message.entries}:
            cohort.phase = "left-out"
            cohort.client.left_out(message)
            return []
        self._guard_pairs(cohort, message)
        cohort.phase = "consistency"
        return [Publish("handshake", cohort.client.consistency(message), cohort.window)]

    def _signatures(self, cohort: CohortRound, message: Signatures) -> list[Effect]:
        if cohort.phase == "left-out":
            cohort.signed_out = cohort.client.signed_without_me(message)
            return []
        if cohort.phase != "consistency":
            return []
        cohort.phase = "unmask"
        answer = cohort.client.unmask(message)
        version, released = self._state.released
        earlier = released if version == cohort.client.context.version else ()
        self._state.released = (cohort.client.context.version, (*earlier, cohort.included))
        return [Save(), Publish("handshake", answer, cohort.window)]

    def _guard_pairs(self, cohort: CohortRound, message: Included) -> None:
        """Refuse a set that differs from another of the same merge version by fewer than k_min devices.

        A window whose sum was merged moves the version on, and its updates are spent; two sums over one version could
        be subtracted from each other. Pairs are stopped here, combinations are not: only noise would stop those.
        """
        cohort.included = tuple(entry.device for entry in message.entries)
        version, released = self._state.released
        if version != cohort.client.context.version:
            return
        k_min = self._manifest.secure.k_min
        for earlier in released:
            apart = set(earlier) ^ set(cohort.included)
            # A rank block is a sum over those alone who train it; all devices are those who train the first one.
            for block in range(len(self._manifest.rank_blocks) or 1):
                difference = sum(self._reaches(device, block) for device in apart)
                if 0 < difference < k_min:
                    raise ProtocolError(
                        f"window {cohort.window}: its included set differs from that of another window on version "
                        f"{version} by {difference} devices{f' of rank block {block}' if block else ''}, fewer than "
                        f"the floor of {k_min}"
                    )

    def _reaches(self, device: str, block: int) -> bool:
        return block == 0 or reach_of(self._manifest, self._identity.roster, device) > block

    def _upload(self, cohort: CohortRound, offer: Offer | None) -> list[Effect]:
        """Mask the offer and send it; `Save` puts *spent* on disk in the transaction that holds the upload."""
        shares, delivered, me = cohort.shares, cohort.delivered, self._identity.me
        if cohort.phase != "shares" or shares is None or delivered is None:
            return []
        if offer is None:
            raise ProtocolError(f"window {cohort.window}: no offer to upload")
        weight = next(member.w for member in cohort.client.context.members if member.device == me)
        vector = self._released(offer, cohort.client.adds_blocks(shares))
        encoded = self._encoder.encode(
            vector, weight, self._identity.entropy.token(32), self._lighter(cohort.client, shares)
        )
        loss, evaluation = self._losses(cohort, shares, offer)
        aux = (offer.n, weight, encoded.norm2, offer.update.tokens, *loss, *evaluation)  # as in `AUX`
        packed = pack_vector(encoded.ring, aux)
        del vector, encoded
        masked = cohort.client.masked_input(shares, delivered, packed, in_place=True)
        del packed
        payload = ring_bytes(masked).toreadonly()
        if self._state.evaluation == (cohort.commit, *evaluation):
            self._state.evaluation = None  # it is in this sum
        offer.window = cohort.window
        cohort.phase = "uploaded"
        described = Payload.of(
            payload, b"masked %d %s" % (cohort.window, me.encode()), sha256=cohort.client.upload_sha256
        )
        upload = Masked(window=cohort.window, payload=described)
        return [Save(), Publish("masked", upload, cohort.window, payload)]

    def _released(self, offer: Offer, adds: frozenset[int]) -> F32:
        """The offered vector, float32[d], with 0 in blocks that too few of the cohort hold: it would not be hidden."""
        vector, held = offer.update.vector, offer.update.held
        left = [block for block in self.blocks if holds(held, block) and block not in adds]
        if not left:
            return vector
        vector = vector.copy()
        for block in left:
            for place in self.blocks[block]:
                vector[place] = 0.0
        return vector

    def _lighter(self, client: Client, shares: SharesList) -> list[tuple[NDArray[np.bool_], int]]:
        """Where this device's update counts with a smaller weight: rank blocks in which it would stand out."""
        if not isinstance(self.blocks, Places):
            return []
        return [(self.blocks[block][0], cap) for block, cap in client.block_caps(shares).items()]

    def _losses(
        self, cohort: CohortRound, shares: SharesList, offer: Offer
    ) -> tuple[tuple[int, int], tuple[int, ...]]:
        """(Σ loss, tokens) of training and of an evaluation, as the run reports them; zeros where it does not.

        What the evaluation measured besides goes with it, under the same floor.
        """
        if not self._manifest.exchange.report_loss:
            return (0, 0), self._nothing
        evaluation = cohort.evaluation if cohort.client.adds_evaluation(shares) else self._nothing
        return (loss_units(offer.update.loss_sum), offer.update.loss_tokens), evaluation
