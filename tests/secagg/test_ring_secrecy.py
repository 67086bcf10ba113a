"""What a server that lies learns on a ring, in symbols: which sums the rules of `docs/secagg.md` let it have.

Devices here do what `Client` does with lists: each checks its own, masks with the neighbours in its shares list under a
key bound to that list, signs one included set, and reveals shares once enough of its neighbours signed the same. The
server shows every device what it likes, and c devices work with it. What it learns are the sums over those parts of
the devices that are unmasked and joined by no mask that is left.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from echelon.messages.wire import DeviceId
from echelon.secagg.context import ring_threshold, threshold
from echelon.secagg.graph import Ring
from tests.secagg.federation import names

Devices = frozenset[DeviceId]
View = tuple[Devices, Devices]
"""A shares list, and an included set in it."""


@dataclass
class Rules:
    """What devices hold their lists against."""

    ring: Ring
    colluding: int
    t: int
    arcs: bool = True
    """Whether they refuse sets that are cut."""
    near: dict[DeviceId, Devices] = field(init=False)

    def __post_init__(self) -> None:
        self.near = {device: near | {device} for device, near in self.ring.neighbours.items()}

    def takes(self, device: DeviceId, devices: Devices) -> bool:
        enough = device in devices and len(devices & self.near[device]) >= self.t
        return enough and (not self.arcs or self.ring.thinnest(devices) > self.colluding)


def learned(
    rules: Rules, bad: Devices, shown: dict[DeviceId, Devices], views: dict[DeviceId, View]
) -> list[Devices]:
    """The sets of honest devices whose sums the server has, given the shares list and the view that each was shown."""
    honest = [device for device in rules.ring.order if device not in bad]
    uploads = {device: shown[device] for device in honest if rules.takes(device, shown[device])}
    signs = {
        device: views[device]
        for device in uploads
        if views[device][0] == shown[device] and views[device][1] <= shown[device]
        and rules.takes(device, views[device][1])
    }  # fmt: skip
    reveals = {}
    for device, view in signs.items():
        signers = {
            other for other in rules.near[device] & view[1] if other in bad or signs.get(other) == view
        }
        if len(signers) >= rules.t:
            reveals[device] = view
    seeds, keys = set(), set()
    for owner in honest:
        holders = rules.near[owner]
        told = [reveals[device] for device in holders if device in reveals]
        helpers = len(holders & bad)
        if helpers + sum(owner in included for _, included in told) >= rules.t:
            seeds.add(owner)
        if helpers + sum(owner in shares - included for shares, included in told) >= rules.t:
            keys.add(owner)
    assert not seeds & keys, "both secrets of one device"
    open_ = {device for device in seeds if device in uploads}

    def same_mask(one: DeviceId, other: DeviceId) -> bool:
        """Whether both masked with each other, under one key."""
        mine, theirs = uploads[one], uploads.get(other, frozenset())
        return one in theirs and other in mine and mine == theirs

    found, left = [], set(open_)
    while left:
        part, todo, hidden = set(), [left.pop()], False
        while todo:
            device = todo.pop()
            part.add(device)
            for other in (rules.near[device] - {device}) & uploads[device]:
                if other in bad or other in keys:
                    continue  # that mask is known
                if other in open_ and same_mask(device, other):
                    if other in left:
                        left.discard(other)
                        todo.append(other)
                else:
                    hidden = True
        if not hidden:
            found.append(frozenset(part))
    return found


def attacks(
    rules: Rules, dice: random.Random, bad: Devices
) -> Iterator[tuple[dict[DeviceId, Devices], dict[DeviceId, View]]]:
    """What a server might show: arcs of the ring, parted by gaps, are told of each other as there or gone."""
    order = rules.ring.order
    n, half = len(order), rules.ring.degree // 2
    everybody = frozenset(order)
    places = [order.index(device) for device in sorted(bad)]
    while True:
        cuts = dice.sample(range(n), dice.choice((2, 2, 3, 4)))
        if places and dice.random() < 0.7:  # gaps have helpers in them
            cuts[: len(places)] = [(place - dice.randrange(half)) % n for place in places[: len(cuts)]]
        cuts = sorted(set(cuts))
        width = dice.choice((0, half - 1, half, half, half + 1))
        gaps = frozenset(order[(cut + step) % n] for cut in cuts for step in range(width))
        sides = [sum(cut <= place for cut in cuts) % len(cuts) for place in range(n)]
        noise = frozenset(dice.sample(order, dice.choice((0, 0, 0, 1, 2))))
        shares, sets = [], []
        for side in range(len(cuts)):
            mine = frozenset(order[place] for place in range(n) if sides[place] == side)
            shares.append(
                dice.choice([everybody, everybody, everybody - gaps, mine | gaps | bad, mine | bad])
            )
            kept = [mine - gaps, mine, everybody - gaps, everybody, mine | gaps]
            sets.append(((dice.choice(kept) | bad) - noise) & shares[-1])
        if dice.random() < 0.5:
            shares, sets = [shares[0]] * len(cuts), [sets[0]] * len(cuts)
        odd = frozenset(dice.sample(order, dice.choice((0, 0, 0, 1, 2))))
        shown = {
            device: everybody if device in odd else shares[sides[place]] for place, device in enumerate(order)
        }
        yield (
            shown,
            {
                device: (shown[device], sets[sides[place]] & shown[device])
                for place, device in enumerate(order)
            },
        )


def broken(rules: Rules, seed: int, tries: int) -> int:
    """In how many of so many attacks the server learned anything but one sum, of a whole included set."""
    dice = random.Random(seed)
    order = rules.ring.order
    bad = frozenset(dice.sample(order, rules.colluding))
    if dice.random() < 0.5:  # beside one another, where they count most
        start = dice.randrange(len(order))
        bad = frozenset(order[(start + step) % len(order)] for step in range(rules.colluding))
    attack = attacks(rules, dice, bad)
    count = 0
    for _ in range(tries):
        shown, views = next(attack)
        found = learned(rules, bad, shown, views)
        whole = all(any(part == views[device][1] - bad for device in part) for part in found)
        count += len(found) > 1 or not whole
    return count


@pytest.mark.parametrize("k", [4, 8, 16, 30, 64])
@pytest.mark.parametrize("c", [0, 1, 2, 5])
def test_the_threshold_is_the_least_that_the_argument_takes(k: int, c: int) -> None:
    t = ring_threshold(k, c)
    assert 3 * t >= 2 * (k + 2 + c) > 3 * (t - 1)
    if k >= 2 * (c + 2):  # as a run file has to have it
        assert t <= k
        assert 4 * t > 2.5 * k + 3 + 3 * c
        assert 2 * t > k + 1 + c


SIZES = [(16, 8, 0), (20, 8, 1), (24, 8, 0), (30, 10, 1), (30, 12, 2), (40, 8, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k", "c"), SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_a_server_learns_one_sum_at_most_and_of_a_whole_included_set(
    n: int, k: int, c: int, seed: int
) -> None:
    rules = Rules(Ring.of(names(n), k, b"%d" % seed), c, ring_threshold(k, c))
    assert broken(rules, seed, 400) == 0


@pytest.mark.slow
@pytest.mark.parametrize("c", [0, 2])
def test_the_search_finds_parts_with_the_complete_graph_s_threshold(c: int) -> None:
    rules = Rules(Ring.of(names(24), 8, b"x"), c, threshold(9, c), arcs=False)
    assert any(broken(rules, seed, 400) for seed in range(6))


def test_an_honest_server_learns_the_one_sum() -> None:
    rules = Rules(Ring.of(names(30), 12, b"x"), 1, ring_threshold(12, 1))
    everybody = frozenset(rules.ring.order)
    gone = frozenset(rules.ring.order[place] for place in (0, 10, 20))
    shown = dict.fromkeys(everybody, everybody)
    views = dict.fromkeys(everybody - gone, (everybody, everybody - gone))
    views |= dict.fromkeys(gone, (everybody, frozenset()))
    bad = frozenset(rules.ring.order[5:6])
    assert learned(rules, bad, shown, views) == [everybody - gone - bad]
