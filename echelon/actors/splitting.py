"""A device's side of what it does with its edge: the session, and the micro-batches of a job or an evaluation.

A job is driven step by step; within a step some of its micro-batches run beside each other, so that the device computes
one while others are on the way or with the edge. Whatever breaks ends the job, and nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from echelon.errors import CodecError, LimitExceeded, ProtocolError
from echelon.laws.channel import Channel, ChannelBroken, Parties, device_channel
from echelon.messages.frames import (
    Assess,
    Backward,
    Begin,
    Begun,
    Decline,
    Declined,
    Finish,
    Finished,
    Forward,
    Gradient,
    Look,
    Looked,
    Output,
    from_double,
    to_double,
)
from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen, SplitPing, SplitPong
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.effects import (
    Abandoned,
    Evaluate,
    Evaluated,
    Incoming,
    Publish,
    TrainJob,
    TrainOutcome,
    TripsMeasured,
)
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey

M = TypeVar("M", bound=Message)
NO_ANSWER, BROKEN, BAD_ANSWER = "no-answer", "session-broken", "bad-answer"
ASK_AGAIN = 2.0
"""Seconds after which an edge that has not accepted a session is asked again."""
PINGS, PING_SECONDS, LAST_SECONDS = 3, 0.5, 2.0
"""How often a measurement of round trips asks, seconds between two questions, and after the last one. What takes longer
is not measured."""
U32_MAX = (1 << 32) - 1


class EdgeLost(Exception):
    """The job cannot go on with this edge. `why` is a word of `Decline`, or one of this module's."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Half(Protocol):
    """The device's part of its model, one job at a time. Calls take as long as they take, off the event loop.

    Tensors are bytes of the wire form; what is none, or has another shape, raises `CodecError`.
    """

    @property
    def cut(self) -> tuple[int, int]:
        """(p, q): first and last blocks that are the device's."""
        ...

    @property
    def in_flight(self) -> int:
        """Most micro-batches that are under way together: it keeps activations of each."""
        ...

    async def start(self, job: TrainJob, secret: bytes) -> bytes:
        """Put weights, moments and data in place; what the edge's half is to be told at the start."""
        ...

    async def begin_step(self) -> int:
        """Read the step's data; the number of its micro-batches."""
        ...

    async def front(self, micro: int) -> bytes:
        """The activation behind the first blocks."""
        ...

    async def back(self, micro: int, hidden: bytes) -> bytes:
        """Loss from what the edge made of it; the loss's gradient by that."""
        ...

    async def front_backward(self, micro: int, gradient: bytes) -> None:
        """Carry a gradient back through the first blocks."""
        ...

    async def step(self, norm2: float) -> float:
        """The optimiser's step, given the squared norm of the middle's gradient; the factor for the edge."""
        ...

    @property
    def probes(self) -> int:
        """How many public probes are looked at after a job; 0: none."""
        ...

    async def look(self, probe: int) -> bytes:
        """The activation of a probe behind the first blocks."""
        ...

    async def looked(self, probe: int, hidden: bytes) -> None:
        """What the edge made of it."""
        ...

    def waited(self, seconds: float) -> None:
        """A micro-batch's two trips to the edge and back took so long together."""
        ...

    async def finish(self) -> TrainOutcome:
        """What the job came to, 0 moved in the middle, and what the probes showed; the next may be cut elsewhere."""
        ...

    async def validation(self, job: Evaluate) -> int:
        """Read what the device's adapters are evaluated on; the number of its micro-batches."""
        ...

    async def assess(self, job: Evaluate, secret: bytes) -> bytes:
        """Put the weights to be evaluated in place; what the edge's half is to be told at the start."""
        ...

    async def shown(self, micro: int) -> bytes:
        """The activation of a micro-batch of the evaluation behind the first blocks."""
        ...

    async def judged(self, micro: int, hidden: bytes) -> None:
        """Loss from what the edge made of it."""
        ...

    async def assessed(self) -> Evaluated:
        """What the evaluation came to."""
        ...


@dataclass(slots=True)
class _Session:
    edge: str
    id: bytes
    key: AgreementKey
    accepted: asyncio.Future[None]
    channel: Channel | None = None


class EdgeLink:
    """One device's sessions, one after the other.

    Args:
        device: its name.
        slot: its partition.
        parties: names the parties of a channel, given the edge.
        entropy: of session keys.
        send: publishes.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self,
        device: str,
        slot: int,
        parties: Callable[[str], Parties],
        entropy: Entropy,
        send: Callable[[Publish], None],
        timeout: float,
    ) -> None:
        self._device, self._slot, self._parties = device, slot, parties
        self._entropy, self._send, self._timeout = entropy, send, timeout
        self._session: _Session | None = None
        self._job = -1
        self._waiting: dict[tuple[str, int, int], asyncio.Future[tuple[Message, bytes]]] = {}

    async def open(self, edge: str) -> None:
        """A session with the edge, the one that is open if it is with that edge.

        Raises:
            EdgeLost: it does not answer.
        """
        session = self._session
        if session is not None and session.edge == edge and session.channel is not None:
            return
        self.close()
        loop = asyncio.get_running_loop()
        key = AgreementKey(self._entropy.token(32))
        session = _Session(edge, self._entropy.token(16), key, loop.create_future())
        self._session = session
        opening = SplitOpen(edge=edge, session=session.id, public=key.public)
        end = loop.time() + self._timeout
        while not session.accepted.done():
            # An edge that starts reads on from the end: it may have missed what was asked before.
            self._send(Publish("split.up", opening, 0, partition=self._slot))
            await asyncio.wait({session.accepted}, timeout=min(ASK_AGAIN, max(0.0, end - loop.time())))
            if not session.accepted.done() and loop.time() >= end:
                self.close()
                raise EdgeLost(NO_ANSWER)

    def knows(self, edge: str, session: bytes) -> bool:
        """Whether that is the session under way, and with that edge."""
        return self._session is not None and (self._session.edge, self._session.id) == (edge, session)

    def close(self, why: str = BROKEN) -> None:
        """Forget the session; whoever waits for an answer hears `why`."""
        self._session = None
        self._fail(why)

    def _fail(self, why: str) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EdgeLost(why))
        self._waiting.clear()

    @property
    def secret(self) -> bytes:
        """The open session's.

        Raises:
            EdgeLost: none is open any more.
        """
        if self._session is None or self._session.channel is None:
            raise EdgeLost(BROKEN)
        return self._session.channel.secret

    def begin(self, job: int) -> None:
        """From now on frames are of that job."""
        self._job = job

    async def ask(
        self, head: Message, kind: type[M], tensor: bytes = b"", step: int = -1, micro: int = -1
    ) -> tuple[M, bytes]:
        """Send a frame and wait for its answer.

        Raises:
            EdgeLost: the edge gave the job up, the session broke, or no answer came in time.
        """
        session = self._session
        if session is None or session.channel is None:
            raise EdgeLost(BROKEN)
        future: asyncio.Future[tuple[Message, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[kind.kind, step, micro] = future
        frame, payload = session.channel.seal(head, tensor)
        self._send(Publish("split.up", frame, 0, payload, self._slot))
        try:
            async with asyncio.timeout(self._timeout):
                found, data = await future
        except TimeoutError:
            self.close(NO_ANSWER)
            raise EdgeLost(NO_ANSWER) from None
        if not isinstance(found, kind):
            raise TypeError(f"{found.kind} answers where {kind.kind} was waited for")
        return found, data

    def take(self, event: Incoming) -> None:
        """A record of `split.down`.

        Raises:
            ProtocolError, Refused: it is to be refused; the session ends where it cannot go on.
        """
        message, session = event.message, self._session
        if session is None or event.sender != session.edge:
            return
        if isinstance(message, SplitAccept):
            fits = (message.device, message.session, message.device_public)
            if fits != (self._device, session.id, session.key.public) or session.channel is not None:
                return
            session.channel = device_channel(
                self._parties(session.edge), session.id, session.key, message.public
            )
            if not session.accepted.done():
                session.accepted.set_result(None)
            return
        if not isinstance(message, SplitFrame) or message.session != session.id or session.channel is None:
            return
        try:
            found = session.channel.open(message, event.payload or b"")
            if found is not None:
                self._answer(*found)
        except (ProtocolError, Refused) as error:
            self.close(BROKEN)
            if isinstance(error, ChannelBroken):
                raise Refused(Reason.OUT_OF_ORDER, str(error)) from error
            raise

    def _answer(self, head: Message, tensor: bytes) -> None:
        if getattr(head, "job", -1) != self._job:
            return  # of a job that was given up
        if isinstance(head, Declined):
            self._fail(head.reason.value)
            return
        at = (head.kind, getattr(head, "step", -1), getattr(head, "micro", -1))
        future = self._waiting.pop(at, None)
        if future is None:
            raise Refused(
                Reason.BAD_FRAME, f"{head.kind} of step {at[1]}, micro-batch {at[2]}, answers nothing"
            )
        if not future.done():
            future.set_result((head, tensor))


class TripMeter:
    """Measures how long each edge of the boundary takes to answer.

    Args:
        slot: the device's partition.
        entropy: of the numbers of questions.
        send: publishes.
    """

    def __init__(self, slot: int, entropy: Entropy, send: Callable[[Publish], None]) -> None:
        self._slot, self._entropy, self._send = slot, entropy, send
        self._asked: dict[int, float] = {}
        self._best: dict[str, int] = {}

    async def measure(self) -> TripsMeasured:
        """Ask all edges a few times; the shortest answer of each."""
        loop = asyncio.get_running_loop()
        self._asked, self._best = {}, {}
        for seconds in (*(PING_SECONDS,) * (PINGS - 1), LAST_SECONDS):
            number = int.from_bytes(self._entropy.token(8), "big") >> 1
            self._asked[number] = loop.time()
            self._send(Publish("split.up", SplitPing(number=number), 0, partition=self._slot))
            await asyncio.sleep(seconds)
        found, self._asked = self._best, {}
        return TripsMeasured(found)

    def take(self, edge: str, pong: SplitPong) -> None:
        """An edge's answer; one to another question than was asked is passed over."""
        asked = self._asked.get(pong.number)
        if asked is not None:
            took = min(round((asyncio.get_running_loop().time() - asked) * 1e6), U32_MAX)
            self._best[edge] = min(took, self._best.get(edge, took))


async def train_with_edge(
    job: TrainJob, half: Half, link: EdgeLink, log: logging.Logger
) -> TrainOutcome | Abandoned:
    """Carry a job out with its edge.

    Returns:
        What it came to; or that it was given up, and why.

    Raises:
        TrainingError: the device's own part cannot be trained.
    """
    split = job.split
    if split is None:
        raise TypeError("a job without an edge is not trained with one")
    front, back = half.cut
    try:
        await link.open(split.edge)
        link.begin(split.job)
        begin = Begin(
            job=split.job, version=split.version, on_top=split.on_top, after=split.after,
            front=front, back=back, mu=to_double(job.mu), steps=job.steps,
        )  # fmt: skip
        opening = await half.start(job, link.secret)
        await link.ask(begin, Begun, opening)
        scale = 1.0
        places = asyncio.Semaphore(half.in_flight)
        for step in range(job.steps):
            count = await half.begin_step()
            norms: list[float] = []
            heads = (
                Forward(job=split.job, step=step, micro=micro, count=count, scale=to_double(scale))
                for micro in range(count)
            )
            await _together(_micro_batch(head, half, link, places, norms) for head in heads)
            if len(norms) != 1:
                raise EdgeLost(BAD_ANSWER)
            scale = await half.step(norms[0])
        for probe in range(half.probes):
            look = Look(job=split.job, micro=probe, scale=to_double(scale))
            _, hidden = await link.ask(look, Looked, await half.look(probe), micro=probe)
            await half.looked(probe, hidden)
        await link.ask(Finish(job=split.job, scale=to_double(scale)), Finished)
        return await half.finish()
    except EdgeLost as lost:
        log.info("job %d with %s was given up: %s", split.job, split.edge, lost.why)
        return Abandoned(split.job, lost.why)
    except (CodecError, LimitExceeded) as error:
        log.warning("job %d with %s was given up: %s", split.job, split.edge, error)
        link.close(BAD_ANSWER)
        return Abandoned(split.job, BAD_ANSWER)


async def evaluate_with_edge(job: Evaluate, half: Half, link: EdgeLink, log: logging.Logger) -> Evaluated:
    """Carry an evaluation out with its edge.

    Returns:
        What it came to; or that it was given up, and why.

    Raises:
        TrainingError: the device's own part gives no loss.
    """
    front, back = half.cut
    try:
        count = await half.validation(job)
        if not count:
            return Evaluated(job.commit, 0.0, 0)
        await link.open(job.edge)
        link.begin(job.job)
        opening = await half.assess(job, link.secret)
        await link.ask(Assess(job=job.job, commit=job.commit, front=front, back=back), Begun, opening)
        places = asyncio.Semaphore(half.in_flight)
        await _together(_look(job.job, micro, half, link, places) for micro in range(count))
        await link.ask(Finish(job=job.job, scale=to_double(1.0)), Finished)
        return await half.assessed()
    except EdgeLost as lost:
        why = lost.why
    except (CodecError, LimitExceeded) as error:
        log.warning("evaluation %d with %s: %s", job.job, job.edge, error)
        link.close(BAD_ANSWER)
        why = BAD_ANSWER
    log.info("evaluation %d with %s was given up: %s", job.job, job.edge, why)
    return Evaluated(job.commit, 0.0, 0, why)


async def _look(job: int, micro: int, half: Half, link: EdgeLink, places: asyncio.Semaphore) -> None:
    """One micro-batch of an evaluation there and back."""
    async with places:
        activation = await half.shown(micro)
        look = Look(job=job, micro=micro, scale=to_double(1.0))
        _, hidden = await link.ask(look, Looked, activation, micro=micro)
        await half.judged(micro, hidden)


async def _together(batches: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Micro-batches beside each other, begun in their order; what broke first is what is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for batch in batches:
                group.create_task(batch)
    except* Exception as broken:
        raise _first(broken) from None


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """What went wrong first: the others were cut short by it."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Exception)
    return found


async def _micro_batch(
    head: Forward, half: Half, link: EdgeLink, places: asyncio.Semaphore, norms: list[float]
) -> None:
    """One micro-batch there and back; the norm of the step's middle gradient comes with the last one."""
    step, micro = head.step, head.micro
    loop = asyncio.get_running_loop()
    async with places:
        activation = await half.front(micro)
        sent = loop.time()
        _, hidden = await link.ask(head, Output, activation, step, micro)
        forward = loop.time() - sent
        gradient = await half.back(micro, hidden)
        sent = loop.time()
        answer, below = await link.ask(
            Backward(job=head.job, step=step, micro=micro), Gradient, gradient, step, micro
        )
        half.waited(forward + loop.time() - sent)
        if answer.last:
            norms.append(from_double(answer.norm2))
        await half.front_backward(micro, below)


__all__ = [
    "BAD_ANSWER",
    "BROKEN",
    "NO_ANSWER",
    "Decline",
    "EdgeLink",
    "EdgeLost",
    "Half",
    "evaluate_with_edge",
    "train_with_edge",
]
