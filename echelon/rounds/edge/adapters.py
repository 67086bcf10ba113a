"""The adapters that an edge's jobs and evaluations start from: newest versions, and those of the newest commits."""

from __future__ import annotations

import hashlib

import numpy as np

from echelon.errors import ProtocolError
from echelon.messages.adapter import F32
from echelon.messages.boundary import Model
from echelon.messages.frames import Assess, Begin, from_double
from echelon.messages.manifest import MILLION
from echelon.rounds.edge.frame_order import MiddleJob
from echelon.rounds.edge.kept import BoundaryVersion
from echelon.rounds.effects import EdgeStart

VERSIONS = 4
"""Newest versions of the boundary adapter that a job may start from."""
COMMITS = 2
"""Newest commits whose adapters may be evaluated."""


class EdgeAdapters:
    """What `model` said, as far as it is still needed.

    Args:
        dim: parameters of the adapter.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.versions: dict[int, BoundaryVersion] = {}
        """The newest versions of the boundary adapter."""
        self.commits: dict[int, F32] = {}
        """The global adapters of the newest commits."""

    def take(self, message: Model, payload: bytes) -> bool:
        """Take a record of `model`.

        Args:
            message: the record.
            payload: the bytes of its adapters, float32[d] each.

        Returns:
            Whether it is a newer version than those before.

        Raises:
            ProtocolError: the payload is not what the record says of it.
        """
        if self.versions and message.version <= max(self.versions):
            return False
        if len(payload) != 4 * self._dim * (1 + message.anchored):
            raise ProtocolError(
                f"model version {message.version} is not what it says of itself: it has {len(payload)} bytes"
            )
        vectors = np.frombuffer(payload, "<f4")
        theta, anchor = vectors[: self._dim], vectors[self._dim :]
        if hashlib.sha256(theta.tobytes()).digest() != message.sha256:
            raise ProtocolError(f"model version {message.version} is not what it says of itself")
        progress = message.progress_ppm / MILLION
        self.versions[message.version] = BoundaryVersion(theta, message.sha256, message.pace, progress)
        while len(self.versions) > VERSIONS:
            del self.versions[min(self.versions)]
        if message.anchored:
            self.commits[message.commit] = anchor
            while len(self.commits) > COMMITS:
                del self.commits[min(self.commits)]
        return True

    def lacks(self, begin: Begin | Assess) -> bool:
        """Whether the adapter that it starts from is gone; one that is still to come is waited for."""
        if isinstance(begin, Begin):
            return bool(self.versions) and begin.version < min(self.versions)
        return bool(self.commits) and begin.commit not in self.commits and begin.commit < max(self.commits)

    def refuses(self, begin: Begin | Assess) -> bool:
        """Whether it cannot start: its adapter is gone, or it trains otherwise than the boundary does from it."""
        if self.lacks(begin):
            return True
        known = self.versions.get(begin.version) if isinstance(begin, Begin) else None
        return isinstance(begin, Begin) and known is not None and not known.trains(begin)

    def place(self, job: MiddleJob, secret: bytes) -> EdgeStart | None:
        """Say where a job's middle starts.

        Args:
            job: the job; its base is noted in it.
            secret: the session's.

        Returns:
            The place; None while the adapter is not there yet.
        """
        begin = job.begin
        if isinstance(begin, Assess):
            anchor = self.commits.get(begin.commit)
            if anchor is None:
                return None
            return EdgeStart(
                base=anchor, start=anchor, front=begin.front, back=begin.back, mu=0.0, progress=0.0, state=None,
                secret=secret,
            )  # fmt: skip
        known = self.versions.get(begin.version)
        if known is None:
            return None
        job.base = begin.version, known.sha256
        start = known.theta if job.on_top is None else known.theta + job.on_top
        return EdgeStart(
            base=known.theta, start=start, front=begin.front, back=begin.back, mu=from_double(begin.mu),
            progress=known.progress, state=job.state, secret=secret,
        )  # fmt: skip
