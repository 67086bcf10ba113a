"""Updates of a device on their way into the boundary's adapter: what it carries, and what it has offered.

An offer is in at most one sum. Once its masked form has left, it comes back only if a threshold of the cohort signed a
set without this device; otherwise it is lost.
"""

from __future__ import annotations

from echelon.laws.staleness import buckets
from echelon.messages.adapter import F32
from echelon.messages.boundary import Cohort, Ready
from echelon.messages.manifest import SecureTerms
from echelon.messages.split import MAX_JOBS
from echelon.messages.wire import DeviceId
from echelon.rounds.device.state import Offer, Update
from echelon.rounds.effects import Effect, Note, note


def ready_of(offer: Offer) -> Ready:
    """What the aggregator is told of an offer."""
    update = offer.update
    return Ready(
        offer=offer.number,
        base_version=update.base_version,
        base_sha256=update.base_sha256,
        n=offer.n,
        shards=tuple(sorted(update.shards)),
        edge=update.edge,
        jobs=update.jobs,
    )


class DeviceOffers:
    """At most one offer, and what was trained since.

    Args:
        secure: the terms of secure aggregation.

    Attributes:
        open: the offer that is not decided, or not in the own base yet.
        carried: trained and not offered.
        ahead: training jobs that ended since the newest offer was made.
    """

    def __init__(self, secure: SecureTerms) -> None:
        self._secure = secure
        self.open: Offer | None = None
        self.carried: Update | None = None
        self.ahead = 0

    @property
    def unspent(self) -> Offer | None:
        """The offer that waits for a cohort."""
        return self.open if self.open is not None and self.open.unspent else None

    def undecided_in(self, window: int) -> Offer | None:
        """The offer, if it was spent in this window and is in no adapter."""
        return self.open if self.open is not None and self.open.undecided_in(window) else None

    def carry(self, update: Update) -> list[Effect]:
        """Add what a job trained to what is carried.

        An offer that came back while the job ran may lie with another edge, or be trained from another version: no
        update has two edges, and an edge adds up what was trained from one version. Then the later one is carried.
        """
        self.ahead += 1
        if self.carried is None:
            self.carried = update
        elif self.carried.fits_with(update):
            self.carried.add(update)
        else:
            self.carried = update
            return [note("progress-left")]
        return []

    def offer(self, number: int) -> Offer | None:
        """Offer what is carried, under this number; None if an offer is open or nothing is carried."""
        if self.open is not None or self.carried is None:
            return None
        n = buckets(self.carried.tokens, self._secure.bucket_tokens, self._secure.n_max)
        self.open, self.carried, self.ahead = Offer(number, self.carried, n), None, 0
        return self.open

    def renumber(self, first: int, newest: int) -> int:
        """Give the offer that waits for a cohort a new number, if its own is of an earlier lease of the slot.

        Another replica may have had the slot meanwhile, and what is numbered below its offers is refused.

        Args:
            first: the number before the first one of this lease.
            newest: the newest number that was given.

        Returns:
            The newest number that is given now.
        """
        offer = self.unspent
        if offer is None or offer.number > first:
            return newest
        offer.number = newest + 1
        return offer.number

    def too_old(self, update: Update, version: int) -> bool:
        """Whether no cohort on this version can take the update, by the table of the manifest."""
        return version - update.base_version >= len(self._secure.staleness)

    def drop_old_carried(self, version: int) -> list[Effect]:
        """Let go of what is carried and could be offered next, if no cohort on this version can take it."""
        if self.open is not None or self.carried is None or not self.too_old(self.carried, version):
            return []
        dropped, self.carried = self.carried, None
        return [note("progress-too-old", version=dropped.base_version)]

    def advanced_to(self, version: int, *, in_cohort: bool) -> list[Effect]:
        """The device's base is this version now: let go of an offer that is in it, and of one that is too old.

        Args:
            version: of the new base.
            in_cohort: whether a cohort has this device; then the cohort decides.
        """
        if self.open is not None and 0 <= self.open.merged_in <= version:
            self.open = None
        offer = self.unspent
        if in_cohort or offer is None or not self.too_old(offer.update, version):
            return []
        # A cohort would say so, but where every offer is too old there is never a cohort.
        self.open = None
        return [note("offer-too-old", window=-1, offer=offer.number)]

    def refused_by(self, cohort: Cohort, me: DeviceId) -> Note | None:
        """Let go of the offer, if the cohort says that it is too old."""
        offer = self.unspent
        if offer is None or (me, offer.number) not in {(late.device, late.offer) for late in cohort.rejected}:
            return None
        self.open = None
        return note("offer-too-old", window=cohort.window, offer=offer.number)

    def left_out(self, window: int, *, signed: bool) -> Note | None:
        """Its window has ended without the offer.

        Args:
            window: the window.
            signed: whether a threshold of the cohort signed a set without this device: then the update is carried
                again. Otherwise it may be in a sum, and is lost.

        Returns:
            What became of the offer; None if it was not spent in this window.
        """
        offer = self.undecided_in(window)
        if offer is None:
            return None
        if signed:
            self._take_back(offer)
        self.open = None
        return note("offer-returned" if signed else "offer-lost", window=window, offer=offer.number)

    def _take_back(self, offer: Offer) -> None:
        """Carry the offered update again, with what was trained since, on the older base of the two."""
        update, later = offer.update, self.carried
        if later is not None and not update.fits_with(later):
            return  # halves at two edges are two updates, and only one can be offered: the later one
        if later is not None:
            update.add(later)
        self.carried = update

    def start_on(self, base: F32, edge: str) -> tuple[F32, tuple[int, ...]]:
        """Where the next job starts: the base, and on top of it what is offered and what is carried.

        Args:
            base: the boundary's adapter, float32[d].
            edge: whom the job is trained with; updates with another partner are left out.

        Returns:
            The start, float32[d], and the jobs whose middle updates an edge adds to it.
        """
        start, on_top = base, tuple[int, ...]()
        for update in (None if self.open is None else self.open.update, self.carried):
            # An offer is forgotten once the own base contains it.
            if update is not None and update.edge == edge:
                start, on_top = start + update.vector, (*on_top, *update.jobs)
        return start, on_top

    def edge_waits(self, version: int) -> bool:
        """Whether an edge takes no further job before the open offer is decided.

        It adds up what was trained from one version, so what is carried is offered before a job from a newer one
        begins; and it keeps no more than so many updates.
        """
        updates = (None if self.open is None else self.open.update, self.carried)
        jobs = sum(len(update.jobs) for update in updates if update is not None)
        return jobs >= MAX_JOBS or (self.carried is not None and self.carried.base_version != version)
