"""Settings of split training inside a boundary: its edges, where models are cut, and how devices and edges speak."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from echelon.config.training import Settings


def _short(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,22}[a-z0-9])?", name):
        raise ValueError(
            f"{name!r} cannot name an edge: use lower-case letters, digits and hyphens, at most 24"
        )
    return name


EdgeId = Annotated[str, AfterValidator(_short)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class EdgeSettings(Settings):
    """One edge server."""

    id: EdgeId = Field(description="Its name within the boundary; on topics it is BOUNDARY.ID.")
    speed: float = Field(
        default=4.0, gt=0, le=10_000, allow_inf_nan=False,
        description="Training speed on the virtual clock, against a device of speed 1.",
    )  # fmt: skip


class SplitSettings(Settings):
    """Split training in one boundary: devices hold the first and last blocks of the model, edges those between."""

    edges: (
        Annotated[int, Field(ge=1, le=64)]
        | Annotated[tuple[EdgeSettings, ...], Field(min_length=1, max_length=64)]
    ) = Field(default=1, description="How many edges (named edge-0, edge-1, …), or a list of edges.")
    front: int = Field(default=1, ge=0, le=1000, description="p: first blocks that a device holds.")
    back: int = Field(
        default=1, ge=0, le=1000, description="q: last blocks that a device holds, with the head."
    )
    micro_batch: int = Field(
        default=4, ge=1, le=65_536,
        description="Sequences of one micro-batch. A step's micro-batches are under way together.",
    )  # fmt: skip
    timeout: Seconds = Field(
        default=60.0,
        description="Seconds that an answer of an edge may take before a device gives its job up.",
    )
    beat: Seconds = Field(
        default=5.0,
        description="Seconds between an edge's heartbeats. One that misses three is taken for lost until the next.",
    )

    def edge_list(self) -> tuple[EdgeSettings, ...]:
        """Every edge."""
        if isinstance(self.edges, int):
            return tuple(EdgeSettings(id=f"edge-{number}") for number in range(self.edges))
        return self.edges
