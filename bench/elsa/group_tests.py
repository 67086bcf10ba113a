"""Devices that train a head on real features in windows, and what a boundary sees of it: sums of secret random halves.

Two designs. `one`: in each window a random half trains from the boundary's model, and the boundary learns its sum and
who was in it. `two`: every device trains, the devices are dealt at random into two halves, and each half has a secure
sum of its own. `record` keeps what every device did, exactly; `bench.elsa.group_scores` looks at sums alone. Nothing
that a device says of itself is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bench.elsa.data import rank
from echelon.errors import ConfigError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Fault = Literal["random-labels", "shuffled-labels", "same-wrong-label", "random-updates", "stale"]
FAULTS: tuple[Fault, ...] = (
    "random-labels",
    "shuffled-labels",
    "same-wrong-label",
    "random-updates",
    "stale",
)
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""AdamW's constants, as `echelon.training` has them; weight decay is 0."""
Design = Literal["one", "two"]


@dataclass(frozen=True)
class Trial:
    """One trajectory.

    Attributes:
        devices: N.
        unreliable: percent of them.
        fault: what these do.
        windows: T.
        seed: of everything that is drawn.
        design: whether one half trains in a window, or both.
        steps: local steps of a window.
        batch: rows of a step.
        lr: of AdamW.
        alpha: of the Dirichlet draw of each class's shares.
    """

    devices: int
    unreliable: int
    fault: Fault
    windows: int
    seed: int
    design: Design = "two"
    steps: int = 4
    batch: int = 16
    lr: float = 1e-2
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.devices < 4 or self.devices % 2:
            raise ConfigError(f"{self.devices} devices cannot be halved: take an even number from 4")
        if self.fault not in FAULTS or not 0 <= self.unreliable < 50:
            raise ConfigError(
                f"{self.unreliable} % unreliable devices of the kind {self.fault!r}: take less than half, and one of "
                f"{', '.join(FAULTS)}"
            )

    @property
    def name(self) -> str:
        """In short, for people."""
        return f"{self.design} {self.devices} {self.fault} {self.unreliable} % seed {self.seed}"

    @property
    def bad(self) -> int:
        """How many devices are unreliable."""
        return round(self.devices * self.unreliable / 100)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows with classes: float32[rows, dims], the last one 1 for the head's bias; int64[rows]."""

    x: F32
    y: Int


@dataclass(frozen=True, eq=False)
class Record:
    """What every device did in every window; zeros where it did not train.

    Attributes:
        bad: bool[N].
        wrong: float64[N], the share of a device's rows whose label is not the true one.
        classes: float64[N, C], the true shares of classes in a device's rows.
        supports: float32[T, N, C], the update's inner product with the direction in which the public loss of each
            class falls fastest, a unit vector.
        gram: float32[T, C, C], those directions' inner products.
        old: float32[T, N, C], as `supports`, with the directions of the first window's model.
        reference: float32[T, N], the same with the update that the boundary makes of public rows.
        norms: float32[T, N].
        halves: bool[T, N], who was in the first half; as many as in the second.
        loss: float64[T, 2], by how much each half's mean alone would raise the public loss; 0 for a half that did not
            train.
        accuracy: float64, on test rows at the end.
    """

    bad: npt.NDArray[np.bool_]
    wrong: F64
    classes: F64
    supports: F32
    gram: F32
    old: F32
    reference: F32
    norms: F32
    halves: npt.NDArray[np.bool_]
    loss: F64
    accuracy: float


def generator(*parts: object) -> np.random.Generator:
    """Draws that depend on these alone."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(rank(*parts), "little")))


def standardise(pooled: F32, public: F32) -> F32:
    """Features centred and scaled by the public rows' moments, which everybody may know; and a column of ones."""
    scaled = (pooled - public.mean(0)) / (public.std(0) + 1e-6) / np.sqrt(pooled.shape[1])
    return np.concatenate([scaled, np.ones((len(pooled), 1), np.float32)], 1, dtype=np.float32)


def probabilities(logits: F32) -> F32:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    result: F32 = shifted / shifted.sum(-1, keepdims=True)
    return result


def loss_of(weights: F32, rows: Rows) -> float:
    """Mean cross entropy in nats."""
    logits = (rows.x @ weights).astype(np.float64)
    top = logits.max(1)
    total = np.log(np.exp(logits - top[:, None]).sum(1)) + top
    return float((total - logits[np.arange(len(logits)), rows.y]).mean())


def accuracy_of(weights: F32, rows: Rows) -> float:
    """Share of rows whose class is found."""
    return float(((rows.x @ weights).argmax(1) == rows.y).mean())


def deal_rows(labels: Int, devices: int, alpha: float, least: int, seed: int) -> list[Int]:
    """Rows of each device: every class's shares are a draw from Dirichlet(alpha, …) over devices (arXiv 1909.06335).

    Raises:
        ConfigError: no draw leaves every device `least` rows.
    """
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for attempt in range(10_000 if least * devices <= len(labels) else 0):
        draw = generator("group tests deal", seed, attempt)
        hands: list[list[Int]] = [[] for _ in range(devices)]
        for members in by_class:
            ends = np.round(np.cumsum(draw.dirichlet(np.full(devices, alpha))) * len(members)).astype(int)
            for hand, part in zip(hands, np.split(draw.permutation(members), ends[:-1]), strict=True):
                hand.append(part)
        dealt = [np.concatenate(hand) for hand in hands]
        if min(map(len, dealt)) >= least:
            return dealt
    raise ConfigError(f"no draw of Dirichlet({alpha}) leaves each of {devices} devices {least} rows")


def labels_of(fault: Fault, true: Int, classes: int, wrong: int, draw: np.random.Generator) -> Int:
    """The labels that an unreliable device trains on.

    Args:
        fault: what it does.
        true: its rows' labels.
        classes: C.
        wrong: the label that colluding devices agreed on.
        draw: of this device.
    """
    if fault == "random-labels":
        return draw.integers(classes, size=len(true))
    if fault == "shuffled-labels":
        return draw.permutation(true)
    if fault == "same-wrong-label":
        return np.full_like(true, wrong)
    return true


class Fleet:
    """The devices of a trial: rows, labels, moments; all train at once."""

    def __init__(self, trial: Trial, train: Rows, classes: int) -> None:
        self.trial, self.x, self.classes = trial, train.x, classes
        self.hands = deal_rows(train.y, trial.devices, trial.alpha, trial.batch, trial.seed)
        order = generator("group tests bad", trial.seed).permutation(trial.devices)
        self.bad = np.isin(np.arange(trial.devices), order[: trial.bad])
        wrong = int(generator("group tests wrong", trial.seed).integers(classes))
        self.labels = [train.y[hand] for hand in self.hands]
        self.mix = np.stack([np.bincount(own, minlength=classes) / len(own) for own in self.labels])
        self.wrong = np.zeros(trial.devices)
        for device in np.flatnonzero(self.bad):
            true = self.labels[device]
            draw = generator("group tests labels", trial.seed, int(device))
            self.labels[device] = labels_of(trial.fault, true, classes, wrong, draw)
            self.wrong[device] = (self.labels[device] != true).mean()
        self.draws = [generator("group tests rows", trial.seed, device) for device in range(trial.devices)]
        shape = (trial.devices, train.x.shape[1], classes)
        self.first, self.second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.taken = np.zeros(trial.devices, np.int64)

    def _batch(self, who: Int) -> tuple[F32, Int]:
        rows, labels = [], []
        for device in who:
            at = self.draws[device].integers(len(self.hands[device]), size=self.trial.batch)
            rows.append(self.hands[device][at])
            labels.append(self.labels[device][at])
        return self.x[np.stack(rows)], np.stack(labels)

    def updates(self, weights: F32, genesis: F32, who: Int) -> F32:
        """What these devices send, float32[N, dims, C], zeros for the others. AdamW's moments stay with each device."""
        start = np.broadcast_to(weights, (len(who), *weights.shape)).copy()
        if self.trial.fault == "stale":
            start[self.bad[who]] = genesis
        now = start.copy()
        first, second, taken = self.first[who], self.second[who], self.taken[who]
        for _ in range(self.trial.steps):
            x, y = self._batch(who)
            error = probabilities(x @ now)
            np.put_along_axis(error, y[:, :, None], np.take_along_axis(error, y[:, :, None], 2) - 1, 2)
            gradient = np.swapaxes(x, 1, 2) @ error / self.trial.batch
            taken += 1
            first += (1 - BETAS[0]) * (gradient - first)
            second += (1 - BETAS[1]) * (gradient * gradient - second)
            rate = self.trial.lr * np.sqrt(1 - BETAS[1] ** taken) / (1 - BETAS[0] ** taken)
            now -= rate.astype(np.float32)[:, None, None] * first / (np.sqrt(second) + EPSILON)
        self.first[who], self.second[who], self.taken[who] = first, second, taken
        sent = np.zeros(self.first.shape, np.float32)
        sent[who] = now - start
        if self.trial.fault == "random-updates":
            for device in who[self.bad[who]]:
                noise = self.draws[device].standard_normal(weights.shape).astype(np.float32)
                sent[device] = noise * (np.linalg.norm(sent[device]) / np.linalg.norm(noise))
        return sent


def directions(weights: F32, public: Rows, classes: int) -> F32:
    """For each class the direction in which its public loss falls fastest, float32[C, dims * C], unit vectors."""
    error = probabilities(public.x @ weights)
    error[np.arange(len(error)), public.y] -= 1
    found = []
    for label in range(classes):
        mine = public.y == label
        gradient = -(public.x[mine].T @ error[mine]).ravel()
        found.append(gradient / max(float(np.linalg.norm(gradient)), 1e-12))
    return np.stack(found)


def record(trial: Trial, train: Rows, public: Rows, test: Rows, classes: int) -> Record:
    """Train for all windows; every device's contributions, and the public losses of each half's mean."""
    fleet = Fleet(trial, train, classes)
    weights = np.zeros((train.x.shape[1], classes), np.float32)
    first_ways = directions(weights, public, classes)
    genesis, draw = weights.copy(), generator("group tests halves", trial.seed)
    seen: dict[str, list[Any]] = {
        key: [] for key in ("supports", "gram", "old", "reference", "norms", "halves", "loss")
    }
    for _ in range(trial.windows):
        first = np.isin(np.arange(trial.devices), draw.permutation(trial.devices)[: trial.devices // 2])
        halves = (first, ~first) if trial.design == "two" else (first,)
        sent = fleet.updates(weights, genesis, np.flatnonzero(np.logical_or.reduce(halves)))
        flat = sent.reshape(trial.devices, -1)
        ways = directions(weights, public, classes)
        mean = ways.mean(0)
        before = loss_of(weights, public)
        seen["supports"].append(flat @ ways.T)
        seen["gram"].append(ways @ ways.T)
        seen["old"].append(flat @ first_ways.T)
        seen["reference"].append(flat @ (mean / max(float(np.linalg.norm(mean)), 1e-12)))
        seen["norms"].append(np.linalg.norm(flat, axis=1))
        seen["halves"].append(first)
        rises = [loss_of(weights + sent[half].mean(0), public) - before for half in halves]
        seen["loss"].append([*rises, 0.0][:2])
        weights = weights + np.mean([sent[half].mean(0) for half in halves], 0)
    stacked = {key: np.stack(values) for key, values in seen.items() if key != "loss"}
    return Record(
        bad=fleet.bad,
        wrong=fleet.wrong,
        classes=fleet.mix,
        loss=np.array(seen["loss"]),
        accuracy=accuracy_of(weights, test),
        **stacked,
    )
