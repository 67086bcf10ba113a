"""Payloads that are being received, on disk: a file without a name, in places of one size.

What is in it is in no process's memory, and it is gone with the process. Its places are as long as the longest payload;
of a place only what was written takes room.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import IO

from echelon.errors import StorageError

_PIECE = 1 << 20  # bytes that are read at a time


class Spill:
    """The file; it is made when it is first written to.

    Args:
        folder: where it is. It must be there.
        size: bytes of a place.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        self._file: IO[bytes] | None = None
        self._free: list[int] = []
        self._places = 0

    def take(self) -> int:
        """A free place: the first one, so that the file is as short as can be."""
        if self._free:
            return heapq.heappop(self._free)
        self._places += 1
        return self._places - 1

    def give_back(self, place: int) -> None:
        """Nobody reads or writes the place any more."""
        heapq.heappush(self._free, place)

    def write(self, place: int, at: int, data: bytes) -> None:
        """Write into a place.

        Args:
            place: of `take`.
            at: bytes of the place that stand before.
            data: what to write.

        Raises:
            StorageError: the disk does not take it.
        """
        start, view = place * self._size + at, memoryview(data)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 (as long as self)
            while view:
                written = os.pwrite(self._file.fileno(), view, start)
                start, view = start + written, view[written:]
        except OSError as error:
            raise self._failed(error) from error

    def read(self, place: int, at: int, length: int) -> bytes:
        """Read what was written into a place.

        Args:
            place: of `take`.
            at: bytes of the place that stand before.
            length: how many bytes.

        Raises:
            StorageError: the disk does not give it.
        """
        if self._file is None or not length:
            return b""
        start, found = place * self._size + at, BytesIO()
        try:
            while left := length - found.tell():
                piece = os.pread(self._file.fileno(), min(left, _PIECE), start + found.tell())
                if not piece:
                    raise OSError("the file is shorter than what was written")
                found.write(piece)
        except OSError as error:
            raise self._failed(error) from error
        return found.getvalue()

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            f"a payload that is being received cannot be kept in {self._folder} now ({error}): make room on its disk, "
            "or see to the disk; it is read again from its topic"
        )
