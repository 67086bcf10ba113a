"""One job on several GPUs, or cores: every rank takes its part of each batch, and gradients are added up.

All ranks hold the same frozen model and the same adapter, and take the same step: this is data-parallel training (Li
et al. 2020, "PyTorch Distributed", section 3), with one sum for each step, because an adapter's gradient is one vector.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from echelon.config.training import DataSettings
from echelon.errors import ConfigError, EchelonError, TrainingError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import Vector
from echelon.training.learner import EvalResult, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.share import BatchShare

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others' gradients; it is not asked to wait for one that has ended."""


@dataclass(frozen=True)
class AmongRanks(BatchShare):
    """The part of one rank.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        divided: whether each holds a part of the frozen weights.
    """

    rank: int = 0
    count: int = 1
    divided: bool = False

    def of(self, chosen: Any) -> Any:
        """Every `count`-th of the sequences."""
        return chosen[self.rank :: self.count]

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Make each tensor the sum over all ranks, in place."""
        for tensor in tensors:
            dist.all_reduce(tensor)


class DataParallelLearner(TorchLearner):
    """A learner whose jobs are trained by several processes; this one is rank 0, which starts the others."""

    def __init__(self, spec: LearnerSpec) -> None:
        check_possible(spec.ranks)
        super().__init__(spec, AmongRanks(0, spec.ranks))
        self._others = OtherRanks(spec)

    def train(self, job: TrainJob) -> TrainOutcome:
        """As `TorchLearner.train`; raises `TrainingError` also where another rank has ended."""
        if not self._others.started:
            self._others.start()
            self._others.answer()
        with self._others.doing("train", job):
            return super().train(job)

    def close(self) -> None:
        """End the other ranks."""
        self._others.close()


class DividedLearner(TorchLearner):
    """As `DataParallelLearner`, and each rank holds a part of the frozen weights: so all of them compute, or none."""

    def __init__(self, spec: LearnerSpec) -> None:
        check_possible(spec.ranks)
        self._others = OtherRanks(spec)
        try:
            self._others.start()
            super().__init__(spec, AmongRanks(0, spec.ranks, divided=True))
            self._others.answer()
        except BaseException:
            self._others.close(kill=True)
            raise

    def train(self, job: TrainJob) -> TrainOutcome:
        """As `TorchLearner.train`; raises `TrainingError` also where another rank has ended."""
        with self._others.doing("train", job):
            return super().train(job)

    def evaluate(
        self, device: str, weights: Vector, max_tokens: int | None = None, state: bytes | None = None
    ) -> EvalResult:
        """As `TorchLearner.evaluate`; raises `TrainingError` also where another rank has ended.

        Args:
            device: whose slice.
            weights: the adapter, float32[d].
            max_tokens: about the most tokens that are read.
            state: what the device kept after its last job.
        """
        with self._others.doing("evaluate", device, weights, max_tokens, state):
            return super().evaluate(device, weights, max_tokens, state)

    def evaluate_source(self, data: DataSettings, weights: Vector) -> EvalResult:
        """As `TorchLearner.evaluate_source`; raises `TrainingError` also where another rank has ended."""
        with self._others.doing("evaluate_source", data, weights):
            return super().evaluate_source(data, weights)

    def generate(self, weights: Vector, prompt: str, max_new_tokens: int) -> str:
        """As `TorchLearner.generate`; raises `TrainingError` also where another rank has ended.

        Args:
            weights: the adapter, float32[d].
            prompt: text to continue.
            max_new_tokens: most tokens that are added.
        """
        with self._others.doing("generate", weights, prompt, max_new_tokens):
            return super().generate(weights, prompt, max_new_tokens)

    def close(self) -> None:
        """End the other ranks."""
        self._others.close()


class OtherRanks:
    """The processes of ranks 1 and up, as rank 0 sees them."""

    def __init__(self, spec: LearnerSpec) -> None:
        self._spec = spec
        self._members: list[tuple[BaseProcess, Connection]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def started(self) -> bool:
        """Whether they are there."""
        return bool(self._members)

    def start(self) -> None:
        """Start them, and meet them. Each then makes its learner; see `answer`."""
        context = multiprocessing.get_context("spawn")
        count = self._spec.ranks
        self._folder = tempfile.TemporaryDirectory(prefix="echelon-ranks-")
        for rank in range(1, count):
            ours, theirs = context.Pipe()
            arguments = (self._spec, rank, self._folder.name, theirs, torch.get_num_threads())
            process = context.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        _join(0, count, self._folder.name)

    def answer(self) -> None:
        """Wait until each has its learner.

        Raises:
            ConfigError: one could not make it.
        """
        for reply in self._replies():
            if reply is not None:
                raise ConfigError(f"a rank could not begin: {reply}")

    @contextlib.contextmanager
    def doing(self, name: str, *arguments: object) -> Iterator[None]:
        """Let each of them do what this rank does meanwhile.

        Args:
            name: of the learner's method.
            arguments: of it.

        Raises:
            TrainingError: one of them has ended, or could not.
        """
        for _, connection in self._members:
            with _ended():
                connection.send((name, arguments))
        try:
            yield
        except EchelonError:
            list(self._replies())  # all compute from the same sums: the others have found the same
            raise
        except (OSError, RuntimeError) as error:
            raise _gone(error) from error
        for reply in self._replies():
            if reply is not None:
                raise TrainingError(f"another rank of this training could not do its part: {reply}")

    def _replies(self) -> Iterator[str | None]:
        for _, connection in self._members:
            with _ended():
                yield connection.recv()

    def close(self, *, kill: bool = False) -> None:
        """End them.

        Args:
            kill: do not wait for what they are doing.
        """
        for process, connection in self._members:
            if kill:
                process.kill()
            connection.close()
            process.join()
        if self._members and dist.is_initialized():
            dist.destroy_process_group()
        self._members = []
        if self._folder is not None:
            self._folder.cleanup()


def check_possible(count: int) -> None:
    """Look whether there is a GPU for each rank, where there are GPUs at all.

    Raises:
        ConfigError: there are fewer.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else None
    if found is not None and found < count:
        raise ConfigError(
            f"compute.ranks {count} needs as many GPUs, and this machine has {found}: lower it, or name more in "
            "CUDA_VISIBLE_DEVICES"
        )


def _join(rank: int, count: int, folder: str) -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks are on one machine
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
    )


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    """What a connection raises whose other end is gone, as `TrainingError`."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise _gone(error) from error


def _gone(error: Exception) -> TrainingError:
    return TrainingError(
        f"a rank of this training has ended ({str(error).strip().partition(chr(10))[0] or 'no answer'}): out of "
        "memory, or its own message is above"
    )


def _rank(spec: LearnerSpec, rank: int, folder: str, connection: Connection, threads: int) -> None:
    """Another process: does its part of each job until rank 0 closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when a run stops
    torch.set_num_threads(threads)
    _join(rank, spec.ranks, folder)
    learner: list[TorchLearner] = []
    share = AmongRanks(rank, spec.ranks, spec.divide_base)
    _answer(connection, lambda: learner.append(TorchLearner(spec, share)))
    while learner:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):  # it is over
            break
        _answer(connection, partial(getattr(learner[0], name), *arguments))
    dist.destroy_process_group()


def _answer(connection: Connection, do: Callable[[], object]) -> None:
    """Do it, and send None, or why it was not possible."""
    try:
        do()
    except EchelonError as error:
        connection.send(str(error))
        return
    connection.send(None)
