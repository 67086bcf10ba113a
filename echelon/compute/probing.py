"""In which terms devices of a boundary are probed: what has to be equal for two records to be comparable. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from echelon.messages.wire import pack
from echelon.rounds.aggregator.trust_standings import RecordShape

PROBES = Path(__file__).parent.parent / "assets" / "probes" / "general.txt"
DIM, CLASSES, POSITIONS, SEED = 16, 64, 4, 0
"""Dimensions of a fingerprint, classes and places of predictive distributions, seed of both projections."""


def probe_terms(count: int, length: int) -> bytes:
    """The digest of the terms, 32 bytes: the first `count` shipped probes, cut to `length` tokens."""
    shipped = hashlib.sha256(PROBES.read_bytes()).digest()
    parts = ["echelon behaviour v2", shipped, count, length, DIM, CLASSES, POSITIONS, SEED]
    return hashlib.sha256(pack(parts)).digest()


def probe_shape(count: int, *, classifies: bool) -> RecordShape:
    """What every record of so many probes has: a classifier predicts once of each, a language model at some places."""
    return RecordShape(DIM, count if classifies else count * POSITIONS, CLASSES)
