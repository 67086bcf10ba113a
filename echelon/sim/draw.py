"""From a seed to a schedule: topology, settings, links and faults, weighted so that rare states are reached.

Every choice is a function of its own. `SETTINGS` (`draw_settings`) are applied in turn to the fields of the run file.
One of `STORIES` (`draw_faults`), each a few faults that together lead somewhere, is told now and then beside what is
merely random. A new kind of setting or fault is one more function in one of the two.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from echelon.sim.coverage import PHASES
from echelon.sim.draft import Draft
from echelon.sim.draw_faults import STORIES, draw_cut, draw_links, random_fault
from echelon.sim.draw_settings import SETTINGS
from echelon.sim.schedule import Fault, Schedule

# ---- edges and witnesses ---------------------------------------------------------------------------


def _edges(draft: Draft) -> None:
    """Some boundaries have edges that train the middle of their devices' models."""
    if not draft.chance(0.2):
        return
    split = 0
    for boundary in draft.run["boundaries"]:
        count = len(boundary["devices"])
        if split and draft.chance(0.5):
            continue
        split += 1
        most = min(2, count // draft.floor)
        edges = [
            {"id": f"edge-{number}", "speed": draft.random.choice((4.0, 4.0, 1.0))}
            for number in range(draft.random.randint(1, most))
        ]
        front, back = draft.random.choice(((1, 1), (1, 1), (2, 1), (1, 0), (0, 2)))
        boundary["split"] = {
            "edges": edges, "front": front, "back": back, "in_flight": draft.random.choice((1, 2)),
            "timeout": draft.random.choice((1.0, 2.0, 5.0)), "beat": draft.random.choice((0.3, 0.6, 1.0)),
            "trips": draft.random.choice((None, None, 3.0)),
        }  # fmt: skip
        _classes(draft, boundary)
    draft.run["learner"]["blocks"] = 4
    # Frames are many records: what is drawn stays small.
    draft.run["sync"]["steps"] = min(2, draft.run["sync"]["steps"])
    draft.run["budget"]["commits"] = min(4, draft.run["budget"].get("commits", 4))


def _classes(draft: Draft, boundary: dict[str, Any]) -> None:
    """Some of its devices are cut elsewhere, or hold all of it."""
    devices = [device["id"] for device in boundary["devices"]]
    spare = len(devices) - draft.floor * len(boundary["split"]["edges"])
    if draft.chance(0.75):
        return
    named = draft.random.sample(devices, draft.random.randint(1, len(devices) - 1))
    one: dict[str, Any] = {"name": "other", "devices": sorted(named)}
    if spare >= len(named) and draft.chance(0.5):
        one["whole"] = True
    else:
        one |= {"front": 1, "back": draft.random.choice((1, 2))}
    boundary["split"]["classes"] = [one]


def _witnesses(draft: Draft) -> None:
    """A witness of its own, beside the gates or in their place."""
    if draft.chance(0.15):
        draft.run["witnesses"] = {
            "names": ["w"], "every": draft.random.choice((0.5, 2.0)), "gates": draft.chance(0.8),
        }  # fmt: skip


def _others(draft: Draft) -> None:
    """Bad links and faults of edges and witnesses."""
    draw_links(draft, ("edge", "witness"))
    for role in ("edge", "witness"):
        for actor in draft.actors(role):
            for _ in range(draft.random.choice((0, 0, 1, 1, 2))):
                kind = draft.random.random()
                if kind < 0.5:
                    draft.crash(actor, role)
                elif kind < 0.75:
                    draft.crash(
                        actor, role, at=None, call=draft.random.choice(("store", "publish", "read")), kind="",
                        phase=draft.random.choice(PHASES[role]), stage="before", nth=draft.random.choice((1, 2, 5)),
                    )  # fmt: skip
                elif kind < 0.95:
                    draw_cut(draft, actor, role)
                else:
                    draft.faults.append(Fault(what="late", actor=actor, at=draft.uniform(0.1, 4.0)))


def _late_part(draft: Draft) -> None:
    """An edge's part takes longer than its window waits for it, or dies on the way with the edge."""
    for edge in draft.actors("edge"):
        if not draft.chance(0.25):
            continue
        nth = draft.random.choice((1, 1, 2))
        if draft.chance(0.5):
            timeout = draft.run["window"]["round_timeout"]
            draft.faults.append(
                Fault(
                    what="slow", actor=edge, broker=draft.brokers(edge)[0], call="publish", kind="edge.part", nth=nth,
                    seconds=0.001, latency=round(timeout * draft.uniform(1.0, 2.5), 3),
                )
            )  # fmt: skip
        else:
            draft.crash(
                edge, "edge", at=None, call=draft.random.choice(("store", "publish")), kind="edge.part",
                stage=draft.random.choice(("before", "after")), nth=nth,
            )  # fmt: skip


def _sparse_deltas(draft: Draft) -> None:
    """Deltas that carry the largest coordinates alone."""
    if draft.chance(0.2):
        draft.run["sync"] |= {"codec": "sparse", "density": draft.random.choice((0.05, 0.1, 0.3))}


def _pace_by_variance(draft: Draft) -> None:
    """An interval that follows the variance among boundaries."""
    if draft.chance(0.06):
        draft.run["sync"]["pace"] = {"kind": "fda"}


def _late_deltas_by_a_cosine(draft: Draft) -> None:
    """Late deltas weigh less along a cosine."""
    if draft.chance(0.06):
        draft.run["sync"]["staleness"]["rule"] = "cosine"


def _short_ring(draft: Draft) -> None:
    """Masked coordinates of 16 bits, some with a bound that cuts updates."""
    if draft.chance(0.2):
        draft.run["secure"] |= {"ring_bits": 16, "coordinate_clip": draft.random.choice((4.0, 1.0, 0.05))}


def _relayed_commits(draft: Draft) -> None:
    """Commits without their adapters, and gates that die on the way from the decision to the adapter inside."""
    if not draft.chance(0.2):
        return
    draft.run["sync"] |= {"inward": "relay", "full_every": draft.random.choice((2, 3, 100))}
    draft.run["sync"]["outer"] = {"kind": "average"}
    for gate in draft.actors("gate"):
        for _ in range(draft.random.choice((0, 0, 1, 2))):
            call, kind = draft.random.choice(
                (("publish", "chunk"), ("publish", "commit"), ("read", "commit"), ("read", "delta"))
            )
            draft.crash(
                gate, "gate", at=None, call=call, kind=kind, stage=draft.random.choice(("before", "after")),
                nth=draft.random.choice((1, 2, 4, 7)), wipe=draft.chance(0.3),
            )  # fmt: skip


def _eager_steps(draft: Draft) -> None:
    """Boundaries that take the outer step with their own delta at once."""
    sync = draft.run["sync"]
    if draft.chance(0.08) and sync.get("overlap", True) and sync["outer"]["kind"] != "fedadam":
        sync["eager"] = True


def _mixed_ranks(draft: Draft) -> None:
    """Devices of several ranks, in boundaries that have enough of each for a sum, or none."""
    sync, boundaries = draft.run["sync"], draft.run["boundaries"]
    split = any("split" in boundary for boundary in boundaries)
    if not draft.chance(0.15) or split or sync.get("pace", {}).get("kind") == "echelon-da":
        return
    blocks = draft.random.choice(((2, 4), (1, 4), (1, 2, 4)))
    draft.run["adapter"] = {"rank": 4, "rank_blocks": list(blocks)}
    for place, boundary in enumerate(boundaries):
        count = len(boundary["devices"])
        lowest = [0] * len(blocks)
        for block in range(1, len(blocks)):
            # How many train no more than the blocks below this one: so many that the others are enough, or all.
            most = count - _enough(draft, count)
            lowest[block] = max(lowest[block - 1], draft.random.randint(0, max(0, most)))
        if place and draft.chance(0.15):
            lowest[-1] = count
        for number, device in enumerate(boundary["devices"]):
            device["rank"] = blocks[max(b for b in range(len(blocks)) if b == 0 or number >= lowest[b])]


def _enough(draft: Draft, count: int) -> int:
    """Fewest devices of so many that a sum of their own may be over."""
    colluding = draft.run["secure"]["colluding"]
    lost = count - max((count + colluding) // 2 + 1, draft.floor)
    return next(
        (few for few in range(draft.floor, count) if few - -(-few * lost // count) >= draft.floor), count
    )


LATER: tuple[Callable[[Draft], None], ...] = (
    *(_edges, _witnesses, _others, _late_part),
    *(
        _sparse_deltas,
        _relayed_commits,
        _short_ring,
        _pace_by_variance,
        _late_deltas_by_a_cosine,
        _eager_steps,
        _mixed_ranks,
    ),
)
"""What came to be drawn after the rest."""


def draw(seed: int) -> Schedule:
    """The schedule of a seed: always the same one."""
    draft = Draft(seed, random.Random(f"echelon schedule {seed}"))
    for choose in SETTINGS:
        choose(draft)
    draw_links(draft)
    for _ in range(draft.random.choice((0, 1, 1, 2))):
        weights, stories = zip(*STORIES, strict=True)
        draft.random.choices(stories, weights)[0](draft)
    for _ in range(draft.random.choice((0, 0, 1, 2, 3, 5))):
        random_fault(draft)
    # From here on of a sequence of their own: what was drawn before stays what it was.
    draft.random = random.Random(f"echelon edges {seed}")
    for choose in LATER:
        choose(draft)
    return Schedule(
        seed=seed, calm=draft.calm, run=draft.run, links=tuple(draft.links), faults=_one_late(draft.faults)
    )


def _one_late(faults: list[Fault]) -> tuple[Fault, ...]:
    """An actor starts once."""
    late: set[str] = set()
    kept = []
    for fault in faults:
        if fault.what == "late":
            if fault.actor in late:
                continue
            late.add(fault.actor)
        kept.append(fault)
    return tuple(kept)
