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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from echelon.errors import ConfigError, EchelonError, TrainingError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.training.learner import LearnerSpec
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
    """

    rank: int = 0
    count: int = 1

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
        self._others: list[tuple[BaseProcess, Connection]] = []

    def train(self, job: TrainJob) -> TrainOutcome:
        """As `TorchLearner.train`; raises `TrainingError` also where another rank has ended."""
        if not self._others:
            self._start()
        for _, connection in self._others:
            with _ended():
                connection.send(job)
        with _ended():
            done = super().train(job)
        for _, connection in self._others:
            with _ended():
                reply = connection.recv()
            if reply is not None:
                raise TrainingError(f"another rank of this training could not do its part: {reply}")
        return done

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        count = self.spec.ranks
        with tempfile.TemporaryDirectory(prefix="echelon-ranks-") as folder:
            for rank in range(1, count):
                ours, theirs = context.Pipe()
                arguments = (self.spec, rank, folder, theirs, torch.get_num_threads())
                process = context.Process(target=_rank, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._others.append((process, ours))
            _join(0, count, folder)
            # They answer once they have met, and the folder that they meet by is no longer needed.
            for _, connection in self._others:
                with _ended():
                    reply = connection.recv()
                if reply is not None:
                    raise ConfigError(f"a rank could not begin: {reply}")

    def close(self) -> None:
        """End the other ranks."""
        for process, connection in self._others:
            connection.close()
            process.join()
        if self._others and dist.is_initialized():
            dist.destroy_process_group()
        self._others = []


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
def _ended() -> Any:
    """What a connection raises whose other end is gone, as `TrainingError`."""
    try:
        yield
    except EchelonError:
        raise
    except (EOFError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"a rank of this training has ended ({str(error).strip().partition(chr(10))[0] or 'no answer'}): out of "
            "memory, or its own message is above"
        ) from error


def _rank(spec: LearnerSpec, rank: int, folder: str, connection: Connection, threads: int) -> None:
    """Another process: trains its part of each job until rank 0 closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when a run stops
    torch.set_num_threads(threads)
    _join(rank, spec.ranks, folder)
    learner: list[TorchLearner] = []
    _answer(connection, lambda: learner.append(TorchLearner(spec, AmongRanks(rank, spec.ranks))))
    while learner:
        try:
            job = connection.recv()
        except (EOFError, OSError):  # it is over
            break
        _answer(connection, partial(learner[0].train, job))
    dist.destroy_process_group()


def _answer(connection: Connection, do: Callable[[], object]) -> None:
    """Do it, and send None, or why it was not possible."""
    try:
        do()
    except EchelonError as error:
        connection.send(str(error))
        return
    connection.send(None)
