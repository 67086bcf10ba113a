"""A way to a port of this host that can be held up: nothing gets through, and nothing is lost or refused either.

This is how a host that is cut off looks from both sides: connections stay, and what was sent arrives late.
"""

from __future__ import annotations

import socket
import threading
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
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._through = threading.Event()
        self._through.set()
        self._ended = False
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]

    def hold(self) -> None:
        """Let nothing through from now on."""
        self._through.clear()

    def go_on(self) -> None:
        """Let everything through, what was sent meanwhile first."""
        self._through.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._through.set()
        self._server.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return  # closed
            try:
                outer = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                inner.close()  # nobody is there
                continue
            self._open += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while block := source.recv(BLOCK):
                self._through.wait()
                sink.sendall(block)
        except OSError:
            pass  # one of both is closed, and so is the other below
        self._through.wait()
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
