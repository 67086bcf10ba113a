"""Which commits bring their adapter, and which are relayed: those name it, and their readers derive it.

A run whose terms name `full_every` = N relays: commit n brings its adapter where N divides n, and where the budget ends
with it. Every other commit holds the decision and the adapter's digest. Each gate reads the deltas that were merged,
derives the adapter, and puts its chunks in front of the commit inside its boundary. There nothing else differs.
"""

from __future__ import annotations

from echelon.messages.exchange import RELAYED_HEADER
from echelon.messages.manifest import ExchangeTerms, RunManifest


def may_relay(terms: ExchangeTerms, commit: int) -> bool:
    """Whether a commit may be without its adapter.

    Args:
        terms: of the run.
        commit: its number, from 1.
    """
    return terms.full_every is not None and commit % terms.full_every != 0


def is_relayed(manifest: RunManifest, commit: int, tokens: int) -> bool:
    """Whether the controller writes a commit without its adapter; that of the last commit always stands there.

    Commits and tokens alone tell that a commit is the last. A run that ends for another reason may end with a relayed
    one.

    Args:
        manifest: of the run.
        commit: its number, from 1.
        tokens: trained by all merged windows, its own among them.
    """
    budget = manifest.budget
    last = 0 < budget.commits <= commit or 0 < budget.tokens <= tokens
    return may_relay(manifest.exchange, commit) and not last


def relayed_commit(headers: tuple[tuple[str, bytes], ...]) -> int | None:
    """Of a record of a boundary's `global`: the commit whose adapter it is a chunk of; None if it was mirrored."""
    if not headers or headers[-1][0] != RELAYED_HEADER:
        return None
    return int.from_bytes(headers[-1][1], "big")
