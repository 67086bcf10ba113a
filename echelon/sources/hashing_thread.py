"""A second thread that computes digests while the audit does something else, where there is a second core.

SHA-256 gives up Python's lock while it works, so two threads hash on two cores. The thread takes what was begun last,
and the audit asks for what was begun first, so they seldom meet. Who asks for a digest computes what is missing of it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from typing_extensions import override

from echelon.laws.hashing import Digest, Sha256


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def hashing_ahead(wanted: bool = True, *, cores: int | None = None) -> Iterator[Sha256 | None]:
    """Who hashes ahead for a `Verifier` in this context: a thread, or nobody.

    Args:
        wanted: False: nobody in any case.
        cores: how many cores there are for it; None: those that this process may run on.
    """
    if not wanted or (usable_cores() if cores is None else cores) < 2:
        yield None
        return
    thread = HashingThread()
    try:
        yield thread
    finally:
        thread.stop()


class HashingThread(Sha256):
    """The thread, and what it has to do. Digests that are asked for after its end are computed by whoever asks."""

    def __init__(self) -> None:
        """Start the thread."""
        self._changed = threading.Condition()
        self._begun: dict[_SharedDigest, None] = {}
        """Digests with parts that nobody has hashed, the newest last."""
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="echelon-hashing", daemon=True)
        self._thread.start()

    @override
    def __call__(self) -> Digest:
        return _SharedDigest(self)

    def stop(self) -> None:
        """End the thread, and wait until it has ended: at most for the part that it hashes."""
        with self._changed:
            self._stopped = True
            self._begun.clear()
            self._changed.notify()
        self._thread.join()

    def has_more(self, digest: _SharedDigest) -> None:
        """Have the thread hash a part of this digest next."""
        with self._changed:
            if not self._stopped:
                self._begun.pop(digest, None)
                self._begun[digest] = None
                self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._begun or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                digest, _ = self._begun.popitem()
            if digest.hash_a_part():
                self.has_more(digest)


class _SharedDigest(Digest):
    """A digest whose parts the thread hashes, until somebody asks for it, who hashes the rest."""

    def __init__(self, thread: HashingThread) -> None:
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._parts: deque[bytes | memoryview] = deque()
        self._hashing = threading.Lock()
        self._wanted = False
        self._error: Exception | None = None

    @override
    def update(self, data: bytes | memoryview, /) -> None:
        self._wanted = False
        self._parts.append(data)
        self._thread.has_more(self)

    @override
    def digest(self) -> bytes:
        self._wanted = True  # the thread leaves it alone from here on
        with self._hashing:
            while self._parts and self._error is None:
                self._hash_next()
            if self._error is not None:
                raise self._error
            return self._sha256.digest()

    def hash_a_part(self) -> bool:
        """Hash the next part, unless somebody else does that; whether there are more."""
        if self._wanted or not self._hashing.acquire(blocking=False):
            return False
        try:
            if self._parts and self._error is None:
                self._hash_next()
            return bool(self._parts) and self._error is None
        finally:
            self._hashing.release()

    def _hash_next(self) -> None:
        try:
            self._sha256.update(self._parts.popleft())
        except Exception as error:  # raised to whoever asks for the digest
            self._error = error
