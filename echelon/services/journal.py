"""Facts that a person follows a run by, one line each in a service's log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from echelon.rounds.effects import Note


def tell(log: logging.Logger, note: Note) -> None:
    """Log a fact, if it is one of those that a person wants to see."""
    words = _WORDS.get(note.kind)
    if words is not None:
        log.info("%s", words(dict(note.facts)))


def _commit(facts: Mapping[str, Any]) -> str:
    merged = ", ".join(f"{one['boundary']} {one['seq']}" for one in facts["merged"])
    return (
        f"commit {facts['commit']}: merged deltas {merged}; {facts['tokens']} tokens in all, "
        f"H={facts['H']}, R={facts['R']}"
    )


def _window(facts: Mapping[str, Any]) -> str:
    if facts["outcome"] == "closed":
        return (
            f"window {facts['window']} closed: {facts['included']} of {facts['cohort']} devices, "
            f"{facts['tokens']} tokens"
        )
    return f"window {facts['window']} void: {facts.get('reason', 'no reason')}"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "commit": _commit,
    "close": lambda facts: f"the run closes after {facts['commits']} commits: {facts['reason']}",
    "refusal": lambda facts: f"delta {facts['seq']} of {facts['boundary']} refused: {facts['reason']}",
    "window": _window,
    "sealed": lambda facts: f"delta {facts['seq']} sealed: {facts['windows']} windows",
    "joined": lambda facts: f"device {facts['device']} joined",
    "left": lambda facts: f"device {facts['device']} left",
    "kept-out": lambda facts: f"device {facts['device']} is kept out: {facts['why']}",
    "adopted": lambda facts: f"commit {facts['commit']} adopted, {facts['merged']} own deltas in it",
}
