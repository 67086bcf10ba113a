"""A way to a port of this host that can be held up: nothing gets through, and nothing is lost or refused either.

This is how a host that is cut off looks from both sides: connections stay, and what was sent arrives late. Or it is
lost, as a host that comes back under another address: connections stay, and nothing ever comes.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

BLOCK = 1 << 16


class Proxy:
    """Passes TCP connections on, both ways, while it is not held up. A context manager.

    Args:
        target: the port on loopback that connections are for.

    Attributes:
        port: where they come in.
        came: when each came, in seconds of the monotonic clock.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._through = threading.Event()
        self._through.set()
        self._lost = False
        self._all = [self._through]
        self._ended = False
        self.came: list[float] = []
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]

    def hold(self) -> None:
        """Let nothing through from now on."""
        self._through.clear()

    def go_on(self) -> None:
        """Let everything through, what was sent meanwhile first."""
        self._through.set()

    def lose(self) -> None:
        """Nothing comes through the connections that there are, and none through those that come until `find`."""
        self._lost = True
        self._through.clear()

    def find(self) -> None:
        """Let through what comes from now on; what came before stays silent for ever."""
        self._through = threading.Event()
        self._through.set()
        self._all.append(self._through)
        self._lost = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        for through in self._all:
            through.set()
        self._server.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return  # closed
            self.came.append(time.monotonic())
            if self._lost:
                self._open.append(inner)
                continue
            try:
                outer = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                inner.close()  # nobody is there
                continue
            self._open += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                ways = (source, sink, self._through)
                threading.Thread(target=self._pass_on, args=ways, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, through: threading.Event) -> None:
        try:
            while block := source.recv(BLOCK):
                through.wait()
                sink.sendall(block)
        except OSError:
            pass  # one of both is closed, and so is the other below
        through.wait()
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
