"""A device and its edge: real halves, the edge's real state machine, sealed frames, over a socket or a played link.

    python -m bench._split_pair edge RUN_FILE SOCKET BOUNDARY {}
    python -m bench._split_pair device RUN_FILE SOCKET BOUNDARY OPTIONS
    python -m bench._split_pair played RUN_FILE - BOUNDARY OPTIONS
    python -m bench._split_pair whole RUN_FILE - BOUNDARY OPTIONS
    python -m bench._split_pair torch - - - {}

`RUN_FILE` has its cuts planned, OPTIONS are JSON. What is left out of a deployment is the broker, the signed envelope
around each record, and the device's part in secure aggregation. `edge` and `device` are two processes in real time.
`played` has both in one process on the virtual clock: each computation is done, and takes there the processor time
that it took, so that other work on the machine counts little. `whole` trains the whole model in a process that is
otherwise the device's, `torch` imports torch and nothing else. Each but the edge prints its figures as JSON.

Nothing but the standard library is imported above: what a process loads is what its role needs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench._split_line import Line, from_record, read, to_record, writer_of

if TYPE_CHECKING:
    from echelon.config.run import RunSettings
    from echelon.training.split.shared_modules import SharedModules

RUN, JOB, VERSION = bytes(16), 1, 0
AGGREGATOR = "aggregator"
MAX_RECORD = 256 << 20
TIMEOUT = 120.0
"""Seconds that an answer may take."""
Span = tuple[str, float, float]
"""What was computed, when it began and when it ended, seconds of the system's monotonic clock."""


def memory(key: str = "VmHWM") -> int:
    """Bytes of resident memory of this process alone: `VmHWM` at its peak, `VmRSS` now."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def timed_compute(settings: RunSettings, spans: list[Span]) -> Any:
    """`SplitCompute` of these settings that notes what it computes, by the running loop's clock.

    On the virtual clock a computation takes the processor time that it took, times `slow`.
    """
    from echelon.clock import is_virtual
    from echelon.compute.split import SplitCompute

    class Timed(SplitCompute):
        slow = 1.0

        async def call(self, seconds: float, fn: Any, *args: Any) -> Any:
            loop = asyncio.get_running_loop()
            began = loop.time()
            if not is_virtual():
                result = await super().call(seconds, fn, *args)
            else:
                before = time.thread_time()
                result = fn(*args)
                await asyncio.sleep(self.slow * (time.thread_time() - before))
            spans.append((fn.__name__, began, loop.time()))
            return result

    return Timed(settings)


def genesis(shared: SharedModules) -> Any:
    """The adapter that both sides begin with, float32[d]."""
    from echelon.training.model import initial_adapter

    return initial_adapter(shared.layout, shared.spec.base_seed)


# ---- the edge ------------------------------------------------------------------------------------


class EdgeSide:
    """An edge's state machine and what it computes, for one device at a time.

    `failed` is told what goes wrong in work that was started.
    """

    def __init__(
        self, settings: RunSettings, boundary: str, compute: Any, failed: Callable[[BaseException], None]
    ) -> None:
        import hashlib

        from echelon.compute.pool import Facts
        from echelon.messages.boundary import Model
        from echelon.messages.exchange import Payload
        from echelon.provision.identities import Identities
        from echelon.provision.manifest_from_settings import build_manifest
        from echelon.rounds.edge.core import EdgeCore, EdgeOptions
        from echelon.rounds.effects import Incoming
        from echelon.secagg.entropy import Entropy

        self._compute, self._failed = compute, failed
        vector = genesis(
            compute._shared
        )  # the process's halves; what they share is no part of their interface
        identities = Identities.create(settings, os.urandom)
        manifest, _ = build_manifest(
            settings, Facts(compute.layout, "{}", bytes(32), vector), identities, RUN
        )
        of_boundary = next(one for one in settings.boundaries if one.name == boundary)
        self._core = EdgeCore(
            manifest=manifest,
            terms=EdgeOptions(5.0, TIMEOUT),
            name=of_boundary.edge_names()[0],
            roster=identities.boundaries[boundary].roster,
            entropy=Entropy(os.urandom),
            dim=vector.size,
            cuts=compute.fits,
        )
        self._core.start()
        theta = vector.astype("<f4").tobytes()
        model = Model(
            version=VERSION, commit=0, sha256=hashlib.sha256(theta).digest(), anchored=False, pace=manifest.pace,
            progress_ppm=0, payload=Payload.of(theta, b"model 0"),
        )  # fmt: skip
        self._core.handle(
            Incoming(topic="model", offset=0, sender=AGGREGATOR, window=0, message=model, payload=theta)
        )
        self._turn = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()
        self._device, self._down = "", Line(None, 0.0, lambda _: None)

    def connect(self, device: str, down: Line) -> None:
        """From now on records are that device's, and answers go down there."""
        self._device, self._down = device, down

    def take(self, data: bytes) -> None:
        """A record of the device."""
        from echelon.rounds.effects import Incoming

        message, payload = from_record(data)
        self._perform(
            self._core.handle(
                Incoming(
                    topic="split.up",
                    offset=0,
                    sender=self._device,
                    window=0,
                    message=message,
                    payload=payload,
                )
            )
        )

    def _perform(self, effects: list[Any]) -> None:
        from echelon.rounds.effects import EdgeDrop, EdgeTask, Publish, Refuse

        for effect in effects:
            if isinstance(effect, Refuse):
                raise RuntimeError(f"the edge refused a record: {effect.detail}")
            if isinstance(effect, Publish):
                self._down.send(to_record(effect.message, effect.payload))
            elif isinstance(effect, EdgeTask | EdgeDrop):
                started = asyncio.create_task(self._carry_out(effect))
                self._work.add(started)
                started.add_done_callback(self._finished)

    async def _carry_out(self, effect: Any) -> None:
        from echelon.rounds.effects import EdgeTask

        async with self._turn:  # a device's work in the order in which it came, as `Edge` does it
            if not isinstance(effect, EdgeTask):
                await self._compute.drop(self._core.name, effect.device)
                return
            done = await self._compute.part(self._core.name, effect)
        self._perform(self._core.handle(done))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)


async def edge(settings: RunSettings, socket: str, boundary: str) -> None:
    """Serve one device until it hangs up."""
    import msgpack

    compute = timed_compute(settings, [])
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(error: BaseException) -> None:
        if not ended.done():
            ended.set_exception(error)

    side = EdgeSide(settings, boundary, compute, fail)

    async def serve(reader: asyncio.StreamReader, stream: asyncio.StreamWriter) -> None:
        try:
            hello = await read(reader)
            side.connect(msgpack.unpackb(hello or b""), Line(None, 0.0, writer_of(stream)))
            while (data := await read(reader)) is not None:
                side.take(data)
            if not ended.done():
                ended.set_result(None)
        except Exception as error:
            fail(error)
        finally:
            stream.close()

    server = await asyncio.start_unix_server(serve, socket, limit=MAX_RECORD)
    async with server:
        print("ready", flush=True)
        await ended
    compute.close()


# ---- the device ----------------------------------------------------------------------------------


def import_service() -> None:
    """What a device's service has loaded before it knows that it trains a part: its role, its loop, its bus."""
    import echelon.bus.kafka
    import echelon.services.roles
    import echelon.services.run  # noqa: F401


class DeviceSide:
    """A device's half and its sessions; `up` carries its records."""

    def __init__(self, compute: Any, boundary: str, me: str, up: Line) -> None:
        import logging

        from echelon.actors.splitting import SplitDriver
        from echelon.laws.channel import Parties
        from echelon.rounds.device.split_core import DeviceSplitCore
        from echelon.secagg.entropy import Entropy

        of_boundary = next(one for one in compute.settings.boundaries if one.name == boundary)
        self._compute, self._boundary, self._me = compute, boundary, me
        self._peer = of_boundary.edge_names()[0]
        parties = Parties(RUN, boundary, me, self._peer)
        core = DeviceSplitCore(
            device=me, slot=0, parties=lambda _: parties, entropy=Entropy(os.urandom), timeout=TIMEOUT
        )
        self._link = SplitDriver(
            core=core,
            side=compute.half(boundary, me),
            send=lambda frame: up.send(to_record(frame.message, frame.payload)),
            log=logging.getLogger("bench"),
        )

    def take(self, data: bytes) -> None:
        """A record of the edge."""
        from echelon.rounds.effects import Incoming

        message, payload = from_record(data)
        self._link.take(
            Incoming(
                topic="split.down", offset=0, sender=self._peer, window=0, message=message, payload=payload
            )
        )

    async def train(self, steps: int) -> float:
        """Train one job; its mean loss."""
        from echelon.rounds.effects import Abandoned, SplitJob, TrainJob, TrainOutcome

        vector = genesis(self._compute._shared)
        split = SplitJob(job=JOB, edge=self._peer, version=VERSION, after=0, on_top=())
        job = TrainJob(
            data=self._me, base=vector, start=vector, steps=steps, mu=0.0, progress=0.0, split=split
        )
        done = await self._link.run(job)
        if isinstance(done, Abandoned):
            raise SystemExit(f"the job was given up: {done.why}")
        assert isinstance(done, TrainOutcome)
        return done.loss_sum / done.loss_tokens


async def device(settings: RunSettings, socket: str, boundary: str, options: dict[str, Any]) -> None:
    """Train one job with the edge's process and print what that took."""
    import msgpack

    from echelon.training.slim_imports import UNUSED, lean_imports

    with lean_imports():
        compute = timed_compute(settings, [])
    imported = memory()
    reader, stream = await asyncio.open_unix_connection(socket, limit=MAX_RECORD)
    write = writer_of(stream)
    write(msgpack.packb(options["device"]))
    side = DeviceSide(compute, boundary, options["device"], Line(None, 0.0, write))

    async def listen() -> None:
        while (data := await read(reader)) is not None:
            side.take(data)

    listening = asyncio.create_task(listen())
    loss = await side.train(options["steps"])
    peak = memory()
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    stream.close()
    compute.close()
    loaded = [name for name in UNUSED if name in sys.modules]
    print(json.dumps({"imported": imported, "peak": peak, "loss": loss, "loaded": loaded}))


# ---- both, on the virtual clock ------------------------------------------------------------------


def played(settings: RunSettings, boundary: str, options: dict[str, Any]) -> None:
    """Train one job for each trial and print what its steps took.

    A trial has `micros` (micro-batches of a step), `in_flight`, `steps`, the link's `up` and `down` in bits/s (None: no
    time) and `rtt` in seconds, and `seconds`: what one micro-batch is to take a device that is slower than this machine
    (None: as fast as it is here).
    """
    from echelon.virtual_loop import run_virtual

    plays: list[dict[str, Any]] = []
    for trial in options["trials"]:
        tried = with_batches(settings, boundary, options["device"], trial["micros"], trial["in_flight"])
        slow = 1.0 if trial["seconds"] is None else max(1.0, trial["seconds"] / plays[0]["device_per_micro"])
        plays.append(run_virtual(partial(play, tried, boundary, options["device"], trial, slow)))
    print(json.dumps({"trials": plays}))


def with_batches(
    settings: RunSettings, boundary: str, device: str, micros: int, in_flight: int
) -> RunSettings:
    """The run with so many micro-batches in a step of the device's class, and so many of them under way."""
    fields = settings.model_dump(mode="json")
    split = next(one["split"] for one in fields["boundaries"] if one["name"] == boundary)
    mine = next(one for one in split["classes"] if device in one["devices"])
    fields["training"] |= {
        "batch_size": micros * (mine["micro_batch"] or split["micro_batch"]),
        "accumulation": 1,
    }
    fields["clock"], mine["in_flight"] = "virtual", in_flight
    return type(settings).model_validate(fields)


async def play(
    settings: RunSettings, boundary: str, me: str, trial: dict[str, Any], slow: float
) -> dict[str, Any]:
    """One job over a link that takes the virtual clock's time."""
    spans: dict[str, list[Span]] = {"device": [], "edge": []}
    mine, theirs = timed_compute(settings, spans["device"]), timed_compute(settings, spans["edge"])
    mine.slow = slow
    failures: list[BaseException] = []
    middle = EdgeSide(settings, boundary, theirs, failures.append)
    up = Line(trial["up"], trial["rtt"] / 2, middle.take)
    side = DeviceSide(mine, boundary, me, up)
    down = Line(trial["down"], trial["rtt"] / 2, side.take)
    middle.connect(me, down)
    before = time.process_time()
    try:
        loss = await side.train(trial["steps"])
    except SystemExit:
        if failures:  # why the edge did not answer
            raise failures[0] from None
        raise
    taken = time.process_time() - before
    computed = sum(
        (end - began) / (slow if who == "device" else 1.0) for who in spans for _, began, end in spans[who]
    )
    windows = steps_of(spans["device"], up.sent, spans["edge"], down.sent)
    counted = windows[1:] or windows
    micros = sum(name == "front" for name, *_ in spans["device"]) / trial["steps"]
    return {
        "loss": loss,
        "micros": micros,
        "slow": slow,
        "device_per_micro": sum(window["device"] for window in counted) / len(counted) / micros,
        "other_per_step": (taken - computed) / trial["steps"],
        "windows": windows,
    }


def steps_of(
    spans: list[Span], up: list[tuple[float, int]], edge_spans: list[Span], down: list[tuple[float, int]]
) -> list[dict[str, float]]:
    """Of each optimiser step its seconds, the seconds that device and edge computed in it, and the bytes each way."""
    begins = [began for name, began, _ in spans if name == "begin_step"]
    ends = [*begins[1:], max(end for name, _, end in spans if name == "step")]
    return [
        {
            "step": end - begin,
            "device": sum(until - since for _, since, until in spans if begin < until <= end),
            "edge": sum(until - since for _, since, until in edge_spans if begin < until <= end),
            "up": sum(size for at, size in up if begin <= at < end),
            "down": sum(size for at, size in down if begin <= at < end),
        }
        for begin, end in zip(begins, ends, strict=True)
    ]


# ---- the whole model -----------------------------------------------------------------------------


def whole(settings: RunSettings, options: dict[str, Any]) -> None:
    """Train the whole model, all else being the device's, and print what it took: one sequence at a time, then all."""
    from echelon.jobs.training import TrainJob
    from echelon.training.slim_imports import lean_imports

    with lean_imports():
        from echelon.compute.pool import spec_of
        from echelon.training.local import TorchLearner
    imported = memory()
    spec = spec_of(settings)
    batch = spec.train.batch_size * spec.train.accumulation
    figures: dict[str, Any] = {"imported": imported}
    for name, size in (("one_by_one", 1), ("together", batch)):
        train = spec.train.model_copy(update={"batch_size": size, "accumulation": batch // size})
        learner = TorchLearner(spec.model_copy(update={"train": train}))
        start = learner.initial_adapter()
        task = TrainJob(
            data=options["device"],
            base=start,
            start=start,
            steps=options["steps"],
            mu=0.0,
            progress=0.0,
            state=None,
        )
        done = learner.train(task)
        figures[name] = {"peak": memory(), "loss": done.loss_sum / done.loss_tokens}
        del learner
    print(json.dumps(figures))


def main() -> None:
    """Play one role."""
    role, run_file, socket, boundary, text = sys.argv[1:]
    import torch

    if role == "torch":
        print(json.dumps({"peak": memory()}))
        return
    torch.set_num_threads(1)
    if role in ("device", "whole"):
        import_service()
    from echelon.config.run import load

    settings = load(Path(run_file))
    options = json.loads(text)
    match role:
        case "edge":
            asyncio.run(edge(settings, socket, boundary))
        case "device":
            asyncio.run(device(settings, socket, boundary, options))
        case "played":
            played(settings, boundary, options)
        case "whole":
            whole(settings, options)
        case _:
            raise SystemExit(f"there is no role {role!r}")


if __name__ == "__main__":
    main()
