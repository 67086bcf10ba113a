"""What is drawn of faults: links, single faults, and stories of several that belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from echelon.sim.coverage import PHASES
from echelon.sim.draft import ROUNDS, WRITES, Draft
from echelon.sim.life import Call
from echelon.sim.schedule import Fault, LinkSpec


def draw_links(draft: Draft, roles: tuple[str, ...] = ("device", "aggregator", "gate", "controller")) -> None:
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


def random_fault(draft: Draft) -> None:
    """One fault of an actor drawn by its role: mostly a crash."""
    kind = draft.random.random()
    role = draft.random.choices(("device", "aggregator", "gate", "controller"), (4, 4, 3, 2))[0]
    actor = draft.random.choice(draft.actors(role))
    if kind < 0.6:
        draft.crash(actor, role)
    elif kind < 0.8:
        draw_cut(draft, actor, role)
    elif kind < 0.9:
        device = draft.random.choice(draft.actors("device"))
        draft.faults.append(
            Fault(what="leave", actor=device, at=draft.uniform(0.1, 4.0), seconds=draft.uniform(0.1, 5.0))
        )
    else:
        draft.faults.append(Fault(what="late", actor=actor, at=draft.uniform(0.1, 4.0)))


def draw_cut(draft: Draft, actor: str, role: str) -> None:
    """A link of the actor that is cut, or slow, for a while.

    Args:
        draft: what is being drawn.
        actor: whose link.
        role: its role.
    """
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
    """Devices go for good, with or without a word; as many stay as a window needs, also if this is drawn twice."""
    for boundary in draft.boundaries:
        devices = draft.devices(boundary)
        most = len(devices) - draft.floor
        for device in draft.random.sample(devices, draft.random.randint(0, most)):
            gone = {fault.actor for fault in draft.faults if fault.gone and fault.actor in devices}
            if len(gone | {device}) > most:
                continue
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
