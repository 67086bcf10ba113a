"""A second thread that computes digests before the verifier asks for them, where there is a second core.

SHA-256 gives up Python's lock while it works, so two threads hash on two cores. A verdict never rests on the thread: a
result is taken only for the very bytes object that it was computed from, and what is not there is computed on the spot.
Whoever waits for a result helps with what else is to be done.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from echelon.audit.records import LogRecord, chunk_digest, has_form_of_chunk
from echelon.laws.together import helped_by

_MOST_OPEN = 2
"""Transfers of one topic whose payload is hashed while its chunks are read; the oldest is given up first."""


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Errand:
    """A computation that one thread makes, once: whoever comes first."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._taken = threading.Lock()
        self._value: Any = None
        self._error: Exception | None = None
        self.done = threading.Event()

    def take(self) -> bool:
        """Whether the caller is the one who has to `make` it."""
        return self._taken.acquire(blocking=False)

    def make(self) -> None:
        """Compute; what is raised stands in the result."""
        try:
            self._value = self._work()
        except Exception as error:  # handed on to whoever asks for the result
            self._error = error
        self.done.set()

    def result(self) -> Any:
        """The value of a task that is done; raises what the work has raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Helper:
    """One thread and its queue. Without a second core there is no thread, and whoever asks computes."""

    def __init__(self, cores: int | None = None) -> None:
        """Start the thread if there are two cores; `cores` stands for the number of usable ones."""
        self.active = (usable_cores() if cores is None else cores) > 1
        self._waiting: deque[Errand] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        if self.active:
            threading.Thread(target=self._work, name="audit-helper", daemon=True).start()

    def submit(self, work: Callable[[], Any], *, first: bool = False) -> Errand:
        """Queue a computation; `first`: before all others."""
        task = Errand(work)
        with self._changed:
            if first:
                self._waiting.appendleft(task)
            else:
                self._waiting.append(task)
            self._changed.notify()
        return task

    def result(self, task: Errand) -> Any:
        """The result of a task: computed here if nobody has begun; else waited for, and others made meanwhile."""
        self._settle(task)
        return task.result()

    def run(self, parts: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run parts in both threads; see `laws.together`."""
        tasks = [Errand(parts[0]), *(self.submit(part, first=True) for part in parts[1:])]
        for task in tasks:
            self._settle(task)
        return [task.result() for task in tasks]

    def _settle(self, task: Errand) -> None:
        if task.take():
            task.make()
        while not task.done.is_set():
            other = self._next(wait=False)
            if other is None:
                task.done.wait()
            elif other.take():
                other.make()

    def shared(self) -> AbstractContextManager[None]:
        """A context in which `laws.together` divides what it can between both threads."""
        return helped_by(self if self.active else None)

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let the thread end; what is queued is not made by it."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify()

    def _next(self, *, wait: bool) -> Errand | None:
        with self._changed:
            while wait and not self._waiting and not self._stopped:
                self._changed.wait()
            return self._waiting.popleft() if self._waiting else None

    def _work(self) -> None:
        while (task := self._next(wait=True)) is not None:
            if task.take():
                task.make()


class _RunningDigest:
    """SHA-256 of a payload while its chunks come in; any thread may go on with it, one at a time."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._hashed = 0
        self._digest = hashlib.sha256()
        self._one = threading.Lock()

    def advance(self) -> None:
        """Hash the parts that are there, unless another thread does."""
        if self._one.acquire(blocking=False):
            try:
                self._catch_up()
            finally:
                self._one.release()

    def finish(self, parts: Sequence[bytes]) -> bytes | None:
        """The digest of all parts, if they are these very objects; else None."""
        if len(parts) != len(self.parts) or any(a is not b for a, b in zip(parts, self.parts, strict=True)):
            return None
        with self._one:
            self._catch_up()
            return self._digest.digest()

    def _catch_up(self) -> None:
        while self._hashed < len(self.parts):
            self._digest.update(self.parts[self._hashed])
            self._hashed += 1


class Digests:
    """The digests that reading one topic needs, computed when they are asked for."""

    def expect(self, record: LogRecord) -> None:
        """Say that a record will be read soon."""

    def chunk(self, record: LogRecord) -> bytes:
        """`chunk_digest` of a record that has the form of a chunk."""
        return chunk_digest(record.topic, record.key, record.headers[:5], record.value)

    def payload(self, transfer: bytes, parts: Sequence[bytes]) -> bytes:
        """SHA-256 of a transfer's payload, given as its chunks in order."""
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return digest.digest()


class DigestsAhead(Digests):
    """The same, begun by a helper as soon as a record is expected."""

    def __init__(self, helper: Helper, *, payloads: bool) -> None:
        """Nothing is expected yet; `payloads`: whether the payloads of this topic are hashed, too."""
        self._helper = helper
        self._payloads = payloads
        self._expected: dict[int, tuple[LogRecord, Errand]] = {}
        self._open: dict[bytes, _RunningDigest] = {}

    def expect(self, record: LogRecord) -> None:
        """Begin with the digest of a chunk, and go on with that of its payload."""
        if not has_form_of_chunk(record):
            return
        task = self._helper.submit(lambda: super(DigestsAhead, self).chunk(record))
        self._expected[id(record)] = record, task
        if self._payloads:
            self._feed(record)

    def _feed(self, record: LogRecord) -> None:
        transfer, index = record.headers[1][1], int.from_bytes(record.headers[2][1], "big")
        running = self._open.get(transfer)
        if running is None:
            running = self._open[transfer] = _RunningDigest()
            if len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
        if index == len(running.parts):
            running.parts.append(record.value)
            self._helper.submit(running.advance)

    def chunk(self, record: LogRecord) -> bytes:
        """As of `Digests`: what was computed of this very record, or computed now."""
        expected, task = self._expected.pop(id(record), (None, None))
        if task is None or expected is not record:
            return super().chunk(record)
        digest: bytes = self._helper.result(task)
        return digest

    def payload(self, transfer: bytes, parts: Sequence[bytes]) -> bytes:
        """As of `Digests`: what was computed of these very chunks, or computed now."""
        running = self._open.pop(transfer, None)
        digest = None if running is None else running.finish(parts)
        return super().payload(transfer, parts) if digest is None else digest
