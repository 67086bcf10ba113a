"""Clients that hold the health port's connections, whether by malice or because they hang."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from echelon.services.config import HttpSettings
from echelon.services.health import Health
from echelon.services.http import MAX_CONNECTIONS, REQUEST_SECONDS, HttpServer
from echelon.services.metrics import Metrics
from tests.services.asking import ask, eventually

HANGS_SECONDS = 30.0
"""How long a test waits before it says that something hangs; nothing here takes so long."""
LONG_BYTES = 1 << 26
"""More than the kernel keeps of an answer that nobody reads."""
PARTS = (b"", b"GET /livez", b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ")
"""What a request may have come to when its client goes quiet: nothing, half a line, half a header."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[HttpServer]:
    health = Health({"service": "gate"}, clock)
    found = HttpServer(HttpSettings(port=0), health, Metrics(health, clock).served, clock)
    yield found
    within(found.close)


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def made(port: int, sent: bytes) -> socket.socket:
            found = stack.enter_context(socket.create_connection(("127.0.0.1", port), HANGS_SECONDS))
            found.sendall(sent)
            return found

        yield made


def within(call: Callable[[], object]) -> None:
    """Call it, and fail if it does not come back."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(HANGS_SECONDS)
    assert not thread.is_alive(), "it hangs"


def ended(connection: socket.socket) -> bool:
    """Wait until the server has let go of a connection; what it answered before is read and forgotten."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("sent", PARTS)
@pytest.mark.parametrize("more", [1, MAX_CONNECTIONS])
def test_clients_that_never_finish_do_not_keep_others_from_the_health(
    server: HttpServer, connect: Callable[..., socket.socket], sent: bytes, more: int
) -> None:
    port = server.start()
    slow = [connect(port, sent) for _ in range(MAX_CONNECTIONS + more)]
    for connection in slow[:more]:
        assert ended(connection)  # the oldest made room
    for path in ("/livez", "/metrics"):
        # On a busy machine the threads of those that made room may not have ended yet: then the next probe is served.
        assert eventually(lambda path=path: ask(port, path)[0] == 200, HANGS_SECONDS)
    assert ended(slow[more])


def test_who_came_last_before_the_limit_is_still_served(
    server: HttpServer, connect: Callable[..., socket.socket]
) -> None:
    port = server.start()
    slow = [connect(port, b"GET /livez HTTP/1.0\r\n") for _ in range(MAX_CONNECTIONS + 1)]
    assert ended(slow[0])
    slow[-1].sendall(b"\r\n")
    assert slow[-1].makefile("rb").readline().split()[1] == b"200"


def test_a_request_has_a_deadline_however_often_a_byte_of_it_comes(
    server: HttpServer, clock: Clock, connect: Callable[..., socket.socket]
) -> None:
    port = server.start()
    dripping = connect(port, b"GET /livez HTTP/1.0\r\n")
    assert ask(port, "/livez")[0] == 200  # so the first has been taken, at the clock's first time
    clock.now += REQUEST_SECONDS - 1
    dripping.sendall(b"X")
    later = connect(port, b"GET /livez HTTP/1.0\r\n")
    assert ask(port, "/livez")[0] == 200
    clock.now += 2
    assert ended(dripping)
    later.sendall(b"\r\n")
    assert later.makefile("rb").readline().split()[1] == b"200"


def test_a_client_that_does_not_read_its_answer_has_the_same_deadline(
    clock: Clock, connect: Callable[..., socket.socket]
) -> None:
    class Long(Collector):
        def collect(self) -> Iterator[Metric]:
            yield Metric("long", "x" * LONG_BYTES, "gauge")

    registry = CollectorRegistry()
    registry.register(Long())
    server = HttpServer(HttpSettings(port=0), Health({}, clock), registry, clock)
    port = server.start()
    deaf = connect(port, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert ask(port, "/livez")[0] == 200  # so the first has been taken
    serving = [thread for thread in threading.enumerate() if thread.name.startswith("echelon-http-")]
    clock.now += REQUEST_SECONDS + 1
    for thread in serving:
        within(thread.join)
    assert len(deaf.makefile("rb").read()) < LONG_BYTES
    within(server.close)


@pytest.mark.parametrize("sent", PARTS)
def test_closing_lets_go_of_every_connection(
    server: HttpServer, connect: Callable[..., socket.socket], sent: bytes
) -> None:
    port = server.start()
    slow = [connect(port, sent) for _ in range(MAX_CONNECTIONS + 1)]
    within(server.close)
    for connection in slow:
        assert ended(connection)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("echelon-http")]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), HANGS_SECONDS)
