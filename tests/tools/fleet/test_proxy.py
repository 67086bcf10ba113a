"""A way that is held up delivers late, and loses nothing."""

from __future__ import annotations

import socket
import threading

from tools.fleet.proxy import Proxy


def echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while block := connection.recv(1024):
            connection.sendall(block)


def test_what_is_sent_while_it_is_held_up_arrives_afterwards() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        with (
            Proxy(server.getsockname()[1]) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), 60) as client,
        ):
            client.sendall(b"one")
            assert client.recv(3) == b"one"
            proxy.hold()
            client.sendall(b"two")
            client.settimeout(0.2)
            try:
                found = client.recv(3)
            except TimeoutError:
                found = b""
            assert found == b""
            client.settimeout(60)
            proxy.go_on()
            assert client.recv(3, socket.MSG_WAITALL) == b"two"
