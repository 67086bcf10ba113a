"""/livez, /readyz and /metrics, served by a thread that the event loop cannot hold up."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from echelon.errors import ConfigError
from echelon.services.config import HttpSettings
from echelon.services.health import Health

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_SECONDS = 10.0
"""Longest that one request may keep its connection silent."""
MAX_CONNECTIONS = 16
"""Requests that are served at the same time; others wait in the listen queue."""

_log = logging.getLogger("echelon.http")


class HttpServer:
    """The server. It is started by `start` and ended by `close`; both are quick.

    Args:
        settings: where to listen; `port` is not None.
        health: what is told.
        registry: the metrics.
    """

    def __init__(self, settings: HttpSettings, health: Health, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._app = application(health, registry)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen and serve; returns the port.

        Raises:
            ConfigError: the address cannot be listened on.
        """
        host, port = self._settings.host, self._settings.port
        try:
            self._server = _Server((host, port or 0), _Handler)
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {host}:{port} ({error.strerror}): set http.port to another, to 0 for any free "
                "one, or to null for none"
            ) from error
        self._server.set_app(self._app)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="echelon-http", daemon=True
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """End it. Idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
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


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Threads, so that a slow client does not keep the others from their health."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        """Without the base class's look-up of the host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread each, of a bounded number."""
        self._slots.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a fault of ours: a line in the log either way."""
        _log.debug("a request of %s was not answered", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    """Quiet, and with a limit of time."""

    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Not every probe is worth a line."""
        _log.debug(format, *args)
