"""Settings of participation windows."""

from __future__ import annotations

from pydantic import Field

from echelon.config.training import Settings
from echelon.config.values import COHORT_LIMIT, Seconds


class WindowSettings(Settings):
    """Participation windows of a boundary."""

    cohort: int | None = Field(
        default=None,
        ge=2,
        le=COHORT_LIMIT,
        description="K: ready devices that close a window at once. None: as many as a cohort holds.",
    )
    deadline: Seconds = Field(
        default=30.0, description="Seconds after which a window closes with whoever is ready."
    )
    round_timeout: Seconds = Field(
        default=10.0, description="Seconds that each round of secure aggregation may take."
    )
    patience: Seconds = Field(
        default=2.0,
        description="Seconds a device waits for a new adapter after an offer, before it trains on.",
    )
    ahead: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Training jobs a device may run while one of its offers is undecided. 0: it waits for its turn, as "
        "suits boundaries of many more devices than a cohort takes.",
    )

    mask_threads: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Threads over which a device spreads its masks, and an aggregator what it takes off: less time on "
        "a machine whose other cores are idle. Sums are the same.",
    )

    @property
    def hold(self) -> float:
        """Seconds that an offer may wait for a cohort once other devices have some of its shards: two deadlines.

        A window that is open already closes within one deadline, and the next window within another. What keeps an
        offer out of both cohorts is an offer of the devices that have its shards now: a cohort takes one of the two.
        The device drops its offer then, because two such offers can keep a boundary below its floor for ever.
        """
        return 2 * self.deadline


class RetentionSettings(Settings):
    """How long a boundary's brokers keep what windows are derived from."""

    windows: int | None = Field(
        default=None,
        ge=1,
        lt=1 << 31,
        description="How many final windows keep their inputs at least. With a number, gates write snapshots, and "
        "`echelon topics trim` may delete inputs of older windows. None: all windows keep them.",
    )
