"""From a seed to a schedule: topology, settings, links and faults, weighted so that rare states are reached.

Every choice is a function of its own below: `SETTINGS` are applied in turn to the fields of the run file, and one of
`STORIES`, each a few faults that together lead somewhere, is told now and then beside what is merely random. A new kind
of setting or fault is one more function in one of the two.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from echelon.messages.names import witness_of
from echelon.sim.coverage import PHASES
from echelon.sim.life import Call
from echelon.sim.schedule import Fault, LinkSpec, Schedule

CONTROL = (
    "window.open", "cohort", "roster", "shares", "included", "signatures", "window", "void", "sealing", "adopt",
    "version", "end",
)  # fmt: skip
ROUNDS = ("advertise", "sealed", "masked", "consistency", "unmask")
FRAMES = ("split.frame", "split.frame", "chunk")
WRITES = {
    "device": ("join", "ready", *ROUNDS),
    "edge": ("heartbeat", "split.accept", *FRAMES, "edge.part", "edge.part"),
    "witness": ("cosignature",),
    "aggregator": (*CONTROL, "model", "deliver", "delta"),
    "gate": ("delta", "genesis", "commit", "refusal", "close", "chunk", "derived"),
    "controller": ("genesis", "commit", "refusal", "close", "chunk"),
}
READS = {
    "device": (*CONTROL, "model", "derived", "deliver"),
    "aggregator": ("ready", *ROUNDS, "derived", "commit", "refusal", "genesis", "close"),
    "gate": (*CONTROL, "masked", "unmask", "delta", "commit", "refusal", "genesis", "close"),
    "controller": ("delta", "chunk"),
    "edge": (
        "split.open",
        *FRAMES,
        "model",
        "derived",
        "cohort",
        "roster",
        "shares",
        "included",
        "signatures",
        "window",
        "end",
    ),
    "witness": ("head",),
}


@dataclass
class Draft:
    """A schedule that is being drawn."""

    seed: int
    random: random.Random
    run: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    links: list[LinkSpec] = field(default_factory=list)
    calm: float = 10.0

    @property
    def boundaries(self) -> list[str]:
        """Their names."""
        return [boundary["name"] for boundary in self.run["boundaries"]]

    def devices(self, boundary: str) -> list[str]:
        """Of one boundary."""
        found = next(one for one in self.run["boundaries"] if one["name"] == boundary)
        return [device["id"] for device in found["devices"]]

    @property
    def floor(self) -> int:
        """Fewest devices of a window."""
        return int(self.run["secure"]["k_min"] + self.run["secure"]["colluding"])

    def actors(self, role: str) -> list[str]:
        """All of a role."""
        if role == "controller":
            return ["controller"]
        if role == "witness":
            return [witness_of(name) for name in self.run.get("witnesses", {}).get("names", ())]
        if role == "edge":
            return [f"{boundary['name']}.{edge['id']}" for boundary in self.run["boundaries"]
                    for edge in boundary.get("split", {}).get("edges", ())]  # fmt: skip
        if role == "device":
            return [device for boundary in self.boundaries for device in self.devices(boundary)]
        return [f"{boundary}.{role}" for boundary in self.boundaries]

    def brokers(self, actor: str) -> list[str]:
        """That it reaches."""
        if actor == "controller" or actor.endswith(".witness"):
            return ["exchange"]
        boundary = next(
            name for name in self.boundaries if actor.startswith(f"{name}.") or actor in self.devices(name)
        )
        return [boundary, "exchange"] if actor.endswith(".gate") else [boundary]

    def uniform(self, low: float, high: float) -> float:
        """Seconds, to the millisecond."""
        return round(self.random.uniform(low, high), 3)

    def chance(self, probability: float) -> bool:
        """Whether something of that probability is so."""
        return self.random.random() < probability

    def crash(self, actor: str, role: str, **changes: Any) -> None:
        """A crash of the actor at a call, or at a time."""
        fields: dict[str, Any] = {"what": "crash", "actor": actor, "seconds": self.uniform(0.01, 3.0)}
        kind = self.random.random()
        if kind < 0.2:
            fields["at"] = self.uniform(0.0, min(self.calm, 4.0))
        elif kind < 0.4:
            fields |= {
                "call": self.random.choice(("store", "mark")),
                "nth": self.random.randint(1, 25),
                "stage": self.random.choice(("before", "after")),
            }
            if fields["call"] == "mark":
                fields["stage"] = "before"
        elif kind < 0.8:
            stored = role != "device"
            fields |= {
                "call": self.random.choice(("publish", "store")) if stored else "publish",
                "stage": self.random.choice(("before", "after")),
                "kind": self.random.choice(WRITES[role]),
                "nth": self.random.choice((1, 1, 1, 2, 2, 3, 4, 6)),
            }
        else:
            fields |= {
                "call": "read",
                "kind": self.random.choice(READS[role]),
                "nth": self.random.choice((1, 1, 1, 2, 2, 3, 4, 6)),
            }
        if self.chance(0.25):
            fields["wipe"] = True
        self.faults.append(Fault.model_validate(fields | changes))


# ---- settings --------------------------------------------------------------------------------------


def _topology(draft: Draft) -> None:
    boundaries = draft.random.choice((1, 2, 2, 2, 2, 3, 3, 4))
    most = {1: 6, 2: 5, 3: 4, 4: 3}[boundaries]
    k_min = draft.random.choice((2, 2, 3, 3, 3, 4))
    colluding = draft.random.choice((0, 0, 0, 1))
    floor = min(k_min + colluding, most)
    draft.run["secure"] = {"k_min": floor - colluding, "colluding": colluding, "clip": 64.0}
    draft.run["boundaries"] = []
    for place in range(boundaries):
        name = "abcd"[place]
        count = draft.random.randint(floor, most)
        devices = [
            {"id": f"{name}-{number}", "speed": draft.random.choice((1.0, 1.0, 1.0, 2.0, 0.5, 0.2))}
            for number in range(count)
        ]
        boundary: dict[str, Any] = {"name": name, "devices": devices, "data": {"source": "text:unused"}}
        if draft.chance(0.12):
            boundary["shards"] = draft.random.randint(count, 2 * count)
        draft.run["boundaries"].append(boundary)


def _window(draft: Draft) -> None:
    smallest = min(len(draft.devices(name)) for name in draft.boundaries)
    draft.run["window"] = {
        "cohort": draft.random.choice((None, None, draft.random.randint(draft.floor, smallest))),
        "deadline": draft.random.choice((0.5, 1.0, 2.0, 4.0)),
        "round_timeout": draft.random.choice((0.4, 0.8, 1.5)),
        "patience": draft.random.choice((0.1, 0.5, 1.0)),
        "ahead": draft.random.choice((1, 1, 2, 3)),
    }
    draft.run["secure"]["staleness"] = _staleness(draft, (0, 1, 2, 4, 8))
    if draft.chance(0.2):
        draft.run["secure"] |= {"bucket_tokens": 2048, "n_max": draft.random.choice((1, 2, 16))}
    if draft.chance(0.1):
        draft.run["secure"]["clip"] = 0.5


def _staleness(draft: Draft, horizons: tuple[int, ...]) -> dict[str, Any]:
    rule = draft.random.choice(("constant", "polynomial", "polynomial", "hinge"))
    return {"rule": rule, "horizon": draft.random.choice(horizons), "knee": draft.random.choice((0, 1, 4))}


def _sync(draft: Draft) -> None:
    windows = draft.random.choice((1, 1, 1, 2, 2, 3))
    pending = draft.random.choice((1, 1, 2, 3))
    count = len(draft.boundaries)
    room = 24 // (pending + 1)
    draft.run["sync"] = {
        "steps": draft.random.choice((1, 2, 3)),
        "windows": windows,
        "mu": draft.random.choice((0.0, 0.0, 0.1)),
        "deltas_per_commit": draft.random.choice((None, None, 1, draft.random.randint(1, count))),
        "deadline": draft.random.choice((1.0, 3.0, 10.0)),
        "pending_max": pending,
        "windows_max": draft.random.choice((None, windows, min(room, windows + 1))),
        "codec": draft.random.choice(("int16", "int16", "int32")),
        "staleness": _staleness(draft, (0, 1, 1, 2, 4)),
        "outer": {
            "kind": draft.random.choice(("average", "average", "average", "nesterov", "fedadam")),
            "weighting": draft.random.choice(("equal", "tokens")),
            "lr": draft.random.choice((1.0, 1.0, 0.7)),
        },
        "report_loss": draft.chance(0.7),
    }
    if draft.run["sync"]["outer"]["kind"] == "fedadam":
        draft.run["sync"]["outer"]["lr"] = 0.05


def _rules(draft: Draft) -> None:
    """Paces that are decided as the run goes on, barriers, and the other outer steps."""
    sync = draft.run["sync"]
    if draft.chance(0.25):
        kinds = ["echelon-da", "echelon-da", "qsr", *(["adacomm"] if sync["report_loss"] else [])]
        sync["pace"] = {
            "kind": draft.random.choice(kinds),
            "period": draft.random.choice((1, 1, 2)),
            "hysteresis": draft.random.choice((0.0, 0.05)),
            "hide_sync": draft.chance(0.5),
        }
    if draft.chance(0.15):
        sync["overlap"] = False
    if draft.chance(0.1):
        sync["outer"] |= {"kind": draft.random.choice(("corrected", "nesterov")), "lr": 0.7}
        sync["outer"]["delay"] = draft.random.choice((None, 1, 3))


def _budget(draft: Draft) -> None:
    commits = draft.random.choice((2, 3, 3, 4, 5))
    draft.run["budget"] = {"commits": commits}
    kind = draft.random.random()
    if kind < 0.05:
        draft.run["budget"] = {"commits": 12, "seconds": draft.random.randint(2, 8)}
    elif kind < 0.1:
        draft.run["budget"] = {"commits": 12, "tokens": 1024 * draft.random.randint(10, 40)}
    elif kind < 0.13 and draft.run["sync"]["report_loss"]:
        draft.run["budget"] = {"commits": 10, "patience": 1}


def _learner(draft: Draft) -> None:
    draft.run["learner"] = {"kind": "quadratic", "dim": draft.random.choice((8, 16, 24))}
    draft.run["cost"] = {"seconds_per_token": draft.random.choice((2e-5, 1e-4, 1e-4, 3e-4))}
    draft.calm = draft.uniform(3.0, 15.0)


SETTINGS: tuple[Callable[[Draft], None], ...] = (
    _topology,
    _window,
    _sync,
    _rules,
    _budget,
    _learner,
)


# ---- links -----------------------------------------------------------------------------------------


def _links(draft: Draft, roles: tuple[str, ...] = ("device", "aggregator", "gate", "controller")) -> None:
    """Some links are bad, or all of them, or none."""
    share = draft.random.choice((0.0, 0.3, 0.3, 1.0))
    if share == 0.0:
        return
    worst = draft.random.choice((0.02, 0.1, 0.25))
    for role in roles:
        for actor in draft.actors(role):
            for broker in draft.brokers(actor):
                if not draft.chance(share):
                    continue
                far = 0.3 if broker == "exchange" else 0.08

                def some(most: float, share: float = 0.4) -> float:
                    return draft.uniform(0.0, most) if draft.chance(share) else 0.0

                draft.links.append(
                    LinkSpec(
                        actor=actor,
                        broker=broker,
                        latency=draft.uniform(0.0005, far),
                        jitter=some(far),
                        spread=some(3 * far),
                        lose_before=some(worst),
                        lose_after=some(worst),
                        lose_read=some(worst),
                        duplicate=some(worst, 0.6),
                        skew=draft.uniform(-1e6, 1e6),
                    )
                )


# ---- faults ----------------------------------------------------------------------------------------


def _random_fault(draft: Draft) -> None:
    kind = draft.random.random()
    role = draft.random.choices(("device", "aggregator", "gate", "controller"), (4, 4, 3, 2))[0]
    actor = draft.random.choice(draft.actors(role))
    if kind < 0.6:
        draft.crash(actor, role)
    elif kind < 0.8:
        _cut(draft, actor, role)
    elif kind < 0.9:
        device = draft.random.choice(draft.actors("device"))
        draft.faults.append(
            Fault(what="leave", actor=device, at=draft.uniform(0.1, 4.0), seconds=draft.uniform(0.1, 5.0))
        )
    else:
        draft.faults.append(Fault(what="late", actor=actor, at=draft.uniform(0.1, 4.0)))


def _cut(draft: Draft, actor: str, role: str) -> None:
    what = draft.random.choice(("cut", "cut", "slow"))
    fields: dict[str, Any] = {
        "what": what,
        "actor": actor,
        "broker": draft.random.choice(draft.brokers(actor)),
        "seconds": draft.random.choice((0.1, 0.5, 2.0, 7.0)),
    }
    if what == "slow":
        fields["latency"] = draft.random.choice((0.2, 0.6, 2.0))
    if draft.chance(0.3):
        fields["at"] = draft.uniform(0.0, 4.0)
    else:
        fields |= {
            "call": "publish",
            "stage": draft.random.choice(("before", "after")),
            "kind": draft.random.choice(WRITES[role]),
            "nth": draft.random.randint(1, 3),
        }
    draft.faults.append(Fault.model_validate(fields))


def _while(draft: Draft, actor: str, phase: str) -> None:
    """An actor dies while it stands somewhere, whenever that is: for what is too short for a time or a count to hit."""
    draft.crash(
        actor, "device", at=None, call=draft.random.choice(("read", "read", "store")), kind="", phase=phase,
        stage="before", nth=draft.random.choice((1, 1, 2)),
    )  # fmt: skip


def _lost_round(draft: Draft) -> None:
    """Several devices of one cohort die in the same round: too few are left, or just enough."""
    boundary = draft.random.choice(draft.boundaries)
    devices = draft.devices(boundary)
    kind, nth = draft.random.choice(ROUNDS), draft.random.choice((1, 1, 2, 3))
    for device in draft.random.sample(devices, draft.random.randint(1, len(devices))):
        draft.crash(
            device, "device", at=None, call="publish", stage=draft.random.choice(("before", "after")), kind=kind,
            nth=nth, wipe=draft.chance(0.15),
        )  # fmt: skip


def _left_out(draft: Draft) -> None:
    """Keys or an upload come too late for their list, and their device lives to see that, or dies then."""
    timeout = draft.run["window"]["round_timeout"]
    boundary = draft.random.choice(draft.boundaries)
    devices = draft.devices(boundary)
    kind, phase = draft.random.choice(
        (("masked", "left-out"), ("masked", "left-out"), ("advertise", "aborted"))
    )
    for device in draft.random.sample(devices, draft.random.choice((1, 1, 2)) if len(devices) > 2 else 1):
        draft.faults.append(
            Fault(
                what="slow", actor=device, broker=boundary, call="publish", kind=kind,
                nth=draft.random.choice((1, 2, 3)), seconds=0.001, latency=round(timeout * draft.uniform(1.0, 2.5), 3),
            )
        )  # fmt: skip
        if draft.chance(0.4):
            _while(draft, device, phase)


def _stale(draft: Draft) -> None:
    """A boundary is cut off while the others commit: its delta comes too late for any commit."""
    boundary = draft.random.choice(draft.boundaries)
    draft.run["sync"] |= {"deltas_per_commit": 1}
    draft.run["sync"]["staleness"]["horizon"] = draft.random.choice((0, 0, 1))
    draft.run["budget"] = {"commits": draft.random.choice((4, 6, 8))}
    broker = draft.random.choice((boundary, "exchange"))
    draft.faults.append(
        Fault(
            what=draft.random.choice(("cut", "slow")), actor=f"{boundary}.gate", broker=broker, call="publish",
            kind="delta", nth=draft.random.choice((1, 1, 2)), seconds=draft.uniform(0.5, 3.0),
            latency=draft.uniform(0.3, 1.5),
        )
    )  # fmt: skip
    if draft.chance(0.5):
        draft.crash(
            f"{boundary}.{draft.random.choice(('gate', 'aggregator'))}", "gate", at=draft.uniform(0.5, 4.0)
        )


def _paused(draft: Draft) -> None:
    """No commit comes for a while: boundaries run as far ahead as they may, and stand still."""
    draft.run["sync"] |= {"pending_max": 1, "windows_max": draft.run["sync"]["windows"]}
    role = draft.random.choice(("controller", "gate"))
    for actor in draft.actors(role):
        if role == "controller" or draft.chance(0.7):
            draft.crash(actor, role, seconds=draft.uniform(2.0, 6.0))
    if draft.chance(0.5):
        draft.crash(draft.random.choice(draft.actors("aggregator")), "aggregator", at=draft.uniform(1.0, 4.0))


def _power(draft: Draft) -> None:
    """Everything of one boundary, or everything at all, stops at the same moment."""
    at, wipe = draft.uniform(0.05, 3.0), draft.chance(0.3)
    chosen = draft.random.sample(draft.boundaries, draft.random.randint(1, len(draft.boundaries)))
    for boundary in chosen:
        for actor in (f"{boundary}.aggregator", f"{boundary}.gate", *draft.devices(boundary)):
            draft.crash(
                actor, "device", at=at, wipe=wipe and draft.chance(0.5), seconds=draft.uniform(0.05, 1.0)
            )
    if draft.chance(0.4):
        draft.crash("controller", "controller", at=at, wipe=wipe, seconds=draft.uniform(0.05, 1.0))


def _between(draft: Draft) -> None:
    """A gate restarts between its delta and the commit, an aggregator between what it sealed and what it sent."""
    boundary = draft.random.choice(draft.boundaries)
    nth = draft.random.choice((1, 2, 3))
    draft.crash(
        f"{boundary}.gate", "gate", at=None, call=draft.random.choice(("publish", "store", "read")), kind="delta",
        stage=draft.random.choice(("before", "after")), nth=nth,
    )  # fmt: skip
    kind = draft.random.choice(("sealing", "delta", "adopt", "version", "model"))
    draft.crash(
        f"{boundary}.aggregator", "aggregator", at=None, call=draft.random.choice(("publish", "store")), kind=kind,
        stage=draft.random.choice(("before", "after")), nth=nth,
    )  # fmt: skip


def _somewhere(draft: Draft) -> None:
    """Actors die each in a phase of their own, at a call that they make there."""
    for _ in range(draft.random.choice((1, 2, 3))):
        role = draft.random.choice(("device", "aggregator", "gate", "controller"))
        actor = draft.random.choice(draft.actors(role))
        draft.crash(
            actor, role, at=None, call=draft.random.choice(("store", "mark", "publish", "read")), kind="",
            phase=draft.random.choice(PHASES[role]), stage="before", nth=draft.random.choice((1, 1, 2, 4)),
        )  # fmt: skip


def _gone(draft: Draft) -> None:
    """Devices go for good, with or without a word; as many stay as a window needs."""
    for boundary in draft.boundaries:
        devices = draft.devices(boundary)
        for device in draft.random.sample(devices, draft.random.randint(0, len(devices) - draft.floor)):
            if draft.chance(0.5):
                draft.crash(device, "device", gone=True)
            else:
                draft.faults.append(Fault(what="leave", actor=device, at=draft.uniform(0.1, 4.0), gone=True))


def _rebuilt(draft: Draft) -> None:
    """State files are lost, several of them."""
    for _ in range(draft.random.randint(1, 4)):
        role = draft.random.choice(("aggregator", "aggregator", "controller", "gate", "device"))
        draft.crash(draft.random.choice(draft.actors(role)), role, wipe=True)


def _again(draft: Draft) -> None:
    """One actor dies again and again, also while it recovers."""
    role = draft.random.choice(("aggregator", "gate", "controller", "device"))
    actor = draft.random.choice(draft.actors(role))
    for _ in range(draft.random.randint(3, 6)):
        draft.crash(actor, role, seconds=draft.uniform(0.001, 0.2))
    for _ in range(2):
        draft.faults.append(
            Fault(
                what="crash", actor=actor, call=draft.random.choice(("store", "mark", "read", "publish")),
                nth=draft.random.randint(1, 12), seconds=draft.uniform(0.001, 0.2),
            )
        )  # fmt: skip


def _end(draft: Draft) -> None:
    """Something breaks just as the run is closed."""
    role = draft.random.choice(("aggregator", "gate", "controller", "device"))
    actor = draft.random.choice(draft.actors(role))
    kind = "end" if role in ("aggregator", "device") else "close"
    calls: tuple[Call, ...] = ("read",) if role == "device" else ("publish", "read", "store")
    call = draft.random.choice(calls)
    stage = draft.random.choice(("before", "after"))
    if role == "aggregator" and call == "read":
        kind = "close"
    if draft.chance(0.6):
        draft.crash(actor, role, at=None, call=call, kind=kind, stage=stage, nth=1)
    else:
        draft.faults.append(
            Fault(
                what="cut", actor=actor, broker=draft.random.choice(draft.brokers(actor)), call=call, kind=kind,
                stage="before", seconds=draft.random.choice((1.0, 7.0)),
            )
        )  # fmt: skip


STORIES: tuple[tuple[int, Callable[[Draft], None]], ...] = (
    (5, _lost_round),
    (4, _left_out),
    (4, _stale),
    (3, _paused),
    (3, _power),
    (4, _between),
    (2, _somewhere),
    (2, _gone),
    (3, _rebuilt),
    (3, _again),
    (2, _end),
)


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
    _links(draft, ("edge", "witness"))
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
                    _cut(draft, actor, role)
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


LATER: tuple[Callable[[Draft], None], ...] = (_edges, _witnesses, _others, _late_part)
"""What came to be drawn after the rest."""


def draw(seed: int) -> Schedule:
    """The schedule of a seed: always the same one."""
    draft = Draft(seed, random.Random(f"echelon schedule {seed}"))
    for choose in SETTINGS:
        choose(draft)
    _links(draft)
    for _ in range(draft.random.choice((0, 1, 1, 2))):
        weights, stories = zip(*STORIES, strict=True)
        draft.random.choices(stories, weights)[0](draft)
    for _ in range(draft.random.choice((0, 0, 1, 2, 3, 5))):
        _random_fault(draft)
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
