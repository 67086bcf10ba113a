"""/livez, /readyz and /metrics, served by a thread that the event loop cannot hold up.

Kept by hand because three pages need no framework: the standard library serves them, and what is added bounds how
many connections a stranger can hold open, and for how long.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from echelon.errors import ConfigError
from echelon.services.config import HttpSettings
from echelon.services.health import Health

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_SECONDS = 10.0
"""Longest that one request may take, from the connection to the last byte of its answer, however it arrives."""
MAX_CONNECTIONS = 16
"""Requests that are served at the same time. One more lets go of the oldest that is not finished: who asks for the
health is done in milliseconds, so the oldest of so many is one that hangs."""
MAX_THREADS = 2 * MAX_CONNECTIONS
"""Threads of connections, those that are just ending among them; beyond that a new connection is closed unread."""
POLL_SECONDS = 0.1
"""How often deadlines are looked at."""
CLOSE_SECONDS = 2.0
"""Longest that `close` waits for threads whose connections it has ended."""

_log = logging.getLogger("echelon.http")


class HttpServer:
    """The server. It is started by `start` and ended by `close`; both are quick.

    Args:
        settings: where to listen; `port` is not None.
        health: what is told.
        registry: the metrics.
        clock: monotonic seconds, by which requests have their deadline.
    """

    def __init__(
        self,
        settings: HttpSettings,
        health: Health,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._app = application(health, registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen and serve; returns the port.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        host, port = self._settings.host, self._settings.port
        try:
            self._server = _Server((host, port or 0), self._clock)
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {host}:{port} ({error.strerror}): set http.port to another, to 0 for any free "
                "one, or to null for none"
            ) from error
        self._server.set_app(self._app)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": POLL_SECONDS},
            name="echelon-http",
            daemon=True,
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End it, with every connection that is open. Idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.let_go(CLOSE_SECONDS)
        self._server = self._thread = None


def application(health: Health, registry: CollectorRegistry) -> WSGIApplication:
    """The WSGI application."""
    metrics: WSGIApplication = make_wsgi_app(registry)

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _json(start_response, "405 Method Not Allowed", {"error": "ask with GET"})
        match path:
            case "/livez":
                return _health(start_response, health.live)
            case "/readyz":
                return _health(start_response, health.ready)
            case "/metrics":
                return metrics(environ, start_response)
            case _:
                return _json(
                    start_response, "404 Not Found", {"error": "ask for /livez, /readyz or /metrics"}
                )

    return serve


def _health(
    start_response: StartResponse, ask: Callable[[], tuple[bool, dict[str, object]]]
) -> Iterable[bytes]:
    good, body = ask()
    return _json(start_response, "200 OK" if good else "503 Service Unavailable", body)


def _json(start_response: StartResponse, status: str, body: dict[str, object]) -> Iterable[bytes]:
    data = json.dumps(body).encode() + b"\n"
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(data)))])
    return [data]


@dataclass(frozen=True)
class _OpenConnection:
    """A connection whose request is not finished."""

    socket: socket.socket
    until: float


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """One thread for each connection, so that a slow client does not keep the others from their health.

    Whatever a thread waits for, its client's next byte or room for the answer, ends when its socket is shut down.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[int, _OpenConnection] = {}  # oldest first
        self._threads_alive: dict[int, threading.Thread] = {}
        self._count = 0
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection. Never waits: where there are too many, the oldest is let go of."""
        with self._lock:
            if len(self._threads_alive) < MAX_THREADS:
                self._begin(request, client_address)
                return
        self.shutdown_request(request)

    def _begin(self, request: Any, client_address: Any) -> None:
        """Called with the lock held."""
        if len(self._open) >= MAX_CONNECTIONS:
            self._drop(next(iter(self._open)), "others came")
        self._count += 1
        number = self._count
        thread = threading.Thread(
            target=self._serve,
            args=(number, request, client_address),
            name=f"echelon-http-{number}",
            daemon=True,
        )
        thread.start()  # what it does to these two waits for the lock
        self._open[number] = _OpenConnection(request, self._clock() + REQUEST_SECONDS)
        self._threads_alive[number] = thread

    def _serve(self, number: int, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread."""
        try:
            self.finish_request(request, client_address)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            with (
                self._lock
            ):  # before it is closed: nobody shuts down a descriptor that is somebody else's by now
                self._open.pop(number, None)
            self.shutdown_request(request)
            with self._lock:
                del self._threads_alive[number]

    def service_actions(self) -> None:
        """End what is past its deadline; called by `serve_forever` at each turn."""
        now = self._clock()
        with self._lock:
            for number in [number for number, one in self._open.items() if one.until <= now]:
                self._drop(number, f"it took more than {REQUEST_SECONDS:.0f} s")

    def let_go(self, within: float) -> None:
        """End every connection, and wait for their threads, at most so many seconds in all."""
        with self._lock:
            for number in list(self._open):
                self._drop(number, "the service ends")
            threads = list(self._threads_alive.values())
        end = time.monotonic() + within
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        if left := sum(thread.is_alive() for thread in threads):
            _log.warning("%d requests did not end within %.0f s and end with the process", left, within)

    def _drop(self, number: int, why: str) -> None:
        """Shut a connection down, which ends its thread. Called with the lock held."""
        _log.debug("a request is not answered: %s", why)
        with suppress(OSError):  # its client has gone already
            self._open.pop(number).socket.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a fault of ours: a line in the log either way."""
        _log.debug("a request of %s was not answered", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    """Quiet."""

    def log_message(self, format: str, *args: Any) -> None:
        """Not every probe is worth a line."""
        _log.debug(format, *args)
