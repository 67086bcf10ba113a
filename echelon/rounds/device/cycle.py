"""How a device works: it trains, offers what it trained, waits a little for a newer adapter, and trains on."""

from __future__ import annotations

from echelon.jobs.training import Abandoned, Evaluated, TrainOutcome
from echelon.messages.frames import Decline
from echelon.messages.manifest import RunManifest
from echelon.messages.split import Assignment
from echelon.rounds.device.leaving import Leaving
from echelon.rounds.device.offers import ready_of
from echelon.rounds.device.snapshot import DeviceParts
from echelon.rounds.device.state import HOLD, PATIENCE, RETRY, DeviceOptions, Offer
from echelon.rounds.effects import (
    Effect,
    Publish,
    Save,
    ShardsGained,
    ShardsLost,
    StartTimer,
    StopTimer,
    note,
)


class WorkCycle:
    """When a device trains, offers and waits.

    Args:
        manifest: the signed terms.
        terms: the device's own configuration.
        parts: what it trains from and with, and what it has trained.
        leaving: its way out; on it, the device begins nothing more.

    Attributes:
        waiting: whether it waits for a newer adapter before it trains on.
    """

    def __init__(
        self, manifest: RunManifest, terms: DeviceOptions, parts: DeviceParts, leaving: Leaving
    ) -> None:
        self._manifest, self._terms, self._leaving = manifest, terms, leaving
        self._state, self._adapters = parts.state, parts.adapters
        self._offers, self._jobs = parts.offers, parts.jobs
        self.waiting = False

    # ---- data shards -----------------------------------------------------------------------------

    def gained(self, event: ShardsGained) -> list[Effect]:
        """The device holds more shards: evaluate and train with them, if it waited for data."""
        self._jobs.shards.gain(event.shards)
        effects = self.evaluate()
        return effects if self.waiting else effects + self.train()

    def lost(self, event: ShardsLost) -> list[Effect]:
        """Other devices hold some of its shards now."""
        return [*self._jobs.shards.lose(event.shards), *self.hold()]

    def _foreign(self) -> Offer | None:
        """The open offer, if it names shards that others have by now."""
        offer = self._offers.unspent
        if offer is None or offer.update.shards <= self._jobs.shards.held or self._leaving.active:
            return None
        return offer

    def hold(self) -> list[Effect]:
        """Bound the wait of an offer on shards that others have by now: no cohort takes it beside theirs."""
        return [] if self._foreign() is None else [StartTimer(HOLD, self._terms.hold)]

    def held_up(self, *, in_cohort: bool) -> list[Effect]:
        """Offers that overlap can keep a boundary below its floor for ever; those on shards of one's own cannot."""
        offer = self._foreign()
        if offer is None:
            return []
        if in_cohort:
            return self.hold()
        self._offers.open = None
        return [note("offer-overlap", window=-1, offer=offer.number), Save(), *self.offer_or_train()]

    # ---- training --------------------------------------------------------------------------------

    def train(self) -> list[Effect]:
        """Begin a job, or an evaluation that is due before it, if nothing stands against it."""
        if not self._may_train():
            return []
        assessment = self._jobs.assess()
        if assessment:
            return assessment  # it trains on when that is done
        effects: list[Effect] = []
        if self._offers.carried is not None and self._offers.carried.edge != self._jobs.partner:
            # Half of it lies with an edge that this device has no more, and no update has two edges.
            self._offers.carried = None
            effects += [note("progress-left"), Save()]
        if self._terms.split and self._offers.edge_waits(self._adapters.version):
            # After a life that ended in order there may be no offer that is waited for: what is carried becomes one.
            return effects if self._offers.open is not None else [*effects, *self.go_on()]
        self.waiting = False
        return [StopTimer(PATIENCE), *effects, *self._jobs.begin(self._adapters, self._offers)]

    def _may_train(self) -> bool:
        adapters = self._adapters
        if adapters.base is None or adapters.barred or self._leaving.active or self._state.finished:
            return False
        # None where each delta is a barrier.
        most_ahead = self._terms.ahead if self._manifest.exchange.overlap else 0
        return self._jobs.can_begin and (self._offers.open is None or self._offers.ahead < most_ahead)

    def trained(self, done: TrainOutcome) -> list[Effect]:
        """A job ended: carry what it trained.

        Raises:
            ProtocolError: no job runs.
        """
        update, effects = self._jobs.end(done)
        effects += self._offers.carry(update)
        if not self._leaving.active:
            effects += self._jobs.assess()
        return effects + self.go_on()

    def abandoned(self, event: Abandoned) -> list[Effect]:
        """A job broke off: nothing of it is kept on either side."""
        split = self._jobs.give_up(event)
        if split is None:
            return []
        effects: list[Effect] = [note("split-lost", edge=split.edge, why=event.why)]
        if event.why == Decline.UNKNOWN_JOB:
            # The edge lost the other half of what was trained before.
            self._offers.carried = None
            if self._offers.unspent is not None:
                self._offers.open = None
            effects.append(Save())
        return [*effects, *self._jobs.release_shard(), StartTimer(RETRY, self._terms.retry)]

    def go_on(self) -> list[Effect]:
        """After training, or once an offer was decided: offer what is carried; then wait a little, or train on."""
        if self._leaving.active:
            return [Save()]
        offers = self._offers
        effects = offers.drop_old_carried(self._adapters.version)
        offer = offers.offer(self._state.offers + 1)
        if offer is not None:
            self._state.offers = offer.number
            effects += self.announce(offer)
        effects.append(Save())
        if self._jobs.running is not None:
            return effects
        if offers.carried is None and offers.open is not None and offers.open.merged_in < 0:
            self.waiting = True
            return [*effects, StartTimer(PATIENCE, self._terms.patience)]
        return effects + self.train()

    def announce(self, offer: Offer) -> list[Effect]:
        """Tell the aggregator of an offer, unless this device is on its way out."""
        if self._leaving.active:
            return []
        self._leaving.announced = True
        return [Publish("checkin", ready_of(offer), 0), *self.hold()]

    def offer_or_train(self) -> list[Effect]:
        """After an offer was lost: offer what is carried, or train."""
        if self._offers.carried is not None:
            return self.go_on()
        self.waiting = False
        return self.train()

    def assigned(self, message: Assignment) -> list[Effect]:
        """Devices are assigned to edges anew: train with the new edge, if this device has one."""
        edge = self._jobs.assign(message)
        if edge is None:
            return []
        return [edge, *([] if self.waiting else self.train())]

    def evaluate(self) -> list[Effect]:
        """Evaluate the newest commit's adapter, if that is due and there is data for it."""
        return [] if self._leaving.active else self._jobs.evaluate()

    def evaluated(self, done: Evaluated) -> list[Effect]:
        """An evaluation ended: a job that waited for the edge begins."""
        with_edge = self._jobs.assessing
        effects = self._jobs.evaluated(done)
        if done.lost or not with_edge or self.waiting:
            return effects
        return effects + self.train()
