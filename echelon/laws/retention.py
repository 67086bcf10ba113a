"""Which inputs of windows may be deleted, and from which snapshot of the gate a reader goes on behind them.

A snapshot has what its gate derived from every window before `Snapshot.window`. Its `inputs` are the offsets before
which no later window has an input. So inputs before them may go, once as many windows as the run keeps are final
behind the snapshot. Who finds less than a snapshot lets go of has found a cut that nobody was allowed to make.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echelon.messages.boundary import INPUTS, Snapshot


def input_offsets(snapshot: Snapshot) -> dict[str, int]:
    """By topic of `INPUTS`: the offset before which inputs may go."""
    return dict(zip(INPUTS, snapshot.inputs, strict=True))


def lets_go(snapshot: Snapshot, firsts: Mapping[str, int]) -> bool:
    """Whether a snapshot lets go of everything that is not kept.

    Args:
        snapshot: the gate's.
        firsts: by topic of `INPUTS`: the first offset that is kept; a topic that is left out is whole.
    """
    offsets = input_offsets(snapshot)
    return all(firsts.get(topic, 0) <= offset for topic, offset in offsets.items())


def allows(snapshot: Snapshot, kept_windows: int | None, due: int) -> bool:
    """Whether the run's terms allow trimming up to a snapshot.

    Args:
        snapshot: the gate's.
        kept_windows: as the run manifest has it; None: nothing may be trimmed.
        due: number of the window that is due: all before it are final.
    """
    return kept_windows is not None and snapshot.window + kept_windows <= due


def newest_allowed(snapshots: Iterable[Snapshot], kept_windows: int | None, due: int) -> Snapshot | None:
    """The newest snapshot up to which inputs may be trimmed; None: there is none.

    Args:
        snapshots: the gate's, in the order of their topic.
        kept_windows: as the run manifest has it.
        due: number of the window that is due.
    """
    allowed = [one for one in snapshots if allows(one, kept_windows, due)]
    return max(allowed, key=lambda one: one.window, default=None)
