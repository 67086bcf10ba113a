"""The devices of a run: which rows each has, and with whom its adapter is merged."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.elsa.data import Snippet, Task, deal, deal_domains, rank, spoilt, unreliable, write_rows
from bench.elsa.plan import (
    BOUNDARIES,
    CORE_GFLOPS,
    DEVICES,
    EDGES,
    TaskJob,
)
from echelon.training.data.encode import encode_rows
from echelon.training.data.sources import RawDocument

LEAST = 2
"""Batches of rows that every device has at least."""


@dataclass(frozen=True)
class TaskDevice:
    """One device of a run: its name, the rows that it trains on, its class, and whether its labels say anything."""

    name: str
    rows: tuple[Snippet, ...]
    kind: str
    speed: float
    reliable: bool


def fleet(job: TaskJob, task: Task) -> list[TaskDevice]:
    """Every device of the run: paired seeds give each arm the same devices with the same rows.

    The device classes take turns, so that each boundary has the same number of each; the unreliable devices are a draw.
    """
    count = len(BOUNDARIES) * DEVICES
    if job.shape.domains:
        hands = deal_domains(task.snippets["train"], devices=count, seed=job.seed)
    else:
        hands = deal(
            snippets=task.snippets["train"],
            labels=task.labels,
            devices=count,
            alpha=job.shape.alpha,
            least=LEAST * job.shape.batch,
            seed=job.seed,
        )
    bad = unreliable(count, round(count * job.unreliable / 100), job.seed)
    kinds = [one for one in job.base_model.devices for _ in range(one.count)]
    devices = []
    for number, hand in enumerate(hands):
        boundary, place = divmod(number, DEVICES)
        kind = kinds[place]
        rows = spoilt(hand, job.fault, task.labels, seed=job.seed, device=number) if number in bad else hand
        devices.append(
            TaskDevice(
                f"{BOUNDARIES[boundary]}-{place}",
                tuple(rows),
                kind.name,
                kind.gflops / CORE_GFLOPS,
                number not in bad,
            )
        )
    return devices


def clusters(devices: Sequence[TaskDevice], seed: int) -> list[list[TaskDevice]]:
    """The devices dealt at random to as many clusters as there are edges."""
    order = sorted(devices, key=lambda one: rank("elsa clusters", seed, one.name))
    count = len(BOUNDARIES) * EDGES
    return [order[number::count] for number in range(count)]


def domain_of(device: TaskDevice) -> str:
    """The domain of a device whose rows have one."""
    return device.rows[0].domain


def apart(devices: Sequence[TaskDevice], how: str, seed: int) -> dict[str, list[TaskDevice]]:
    """Devices whose adapters are merged with each other and no others': those of a domain, or drawn at random."""
    by_domain: dict[str, list[TaskDevice]] = {}
    for one in devices:
        by_domain.setdefault(domain_of(one), []).append(one)
    domains = [members for _, members in sorted(by_domain.items())]
    if how == "domains":
        return {f"cluster-{k}": members for k, members in enumerate(domains)}
    order = sorted(devices, key=lambda one: rank("elsa clusters", seed, one.name))
    ends = [0]
    for members in domains:
        ends.append(ends[-1] + len(members))
    return {f"cluster-{k}": order[a:b] for k, (a, b) in enumerate(itertools.pairwise(ends))}


def write_boundary(
    devices: Sequence[TaskDevice], learner_tokens: Mapping[str, int], path: Path
) -> list[TaskDevice]:
    """The rows of a boundary's devices; the devices in the order in which `by-domain` deals the rows to them.

    That is by tokens, the most first; each device's rows are a domain of their own.
    """
    ordered = sorted(devices, key=lambda one: (-learner_tokens[one.name], one.name))
    write_rows([(row, one.name) for one in ordered for row in one.rows], path)
    return ordered


def tokens_of(devices: Sequence[TaskDevice], task: Task, length: int, tokenizer: Any) -> dict[str, int]:
    """Tokens of each device's rows, as the learner counts them."""
    tokens = {}
    for one in devices:
        raw = [RawDocument(str(k), one.name, row.text, row.label) for k, row in enumerate(one.rows)]
        tokens[one.name] = sum(document.size for document in encode_rows(raw, tokenizer, task.labels, length))
    return tokens
