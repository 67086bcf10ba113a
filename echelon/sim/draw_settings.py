"""What is drawn of a federation's settings: each function draws one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from echelon.sim.draft import Draft


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
