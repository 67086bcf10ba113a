"""An issuer of signed tokens, and an endpoint that gives them for a secret, both on this machine."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from echelon.provision.pki import Authority, write_private, write_public

AUDIENCE, ISSUER = "kafka", "https://issuer.test"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Issuer:
    """Signs JSON web tokens with RS256."""

    def __init__(self, key_id: str = "key-1") -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        self._key_id = key_id

    def jwks(self) -> str:
        """The public key, as a broker reads it."""
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self._key_id}
        return json.dumps({"keys": [{**key, "n": _number(numbers.n), "e": _number(numbers.e)}]})

    def token(self, subject: str, seconds: float = 3600, **claims: object) -> str:
        """A token for a principal that holds for some time from now; a negative time is over."""
        now = time.time()
        header = {"alg": "RS256", "typ": "JWT", "kid": self._key_id}
        body = {
            "sub": subject,
            "iss": ISSUER,
            "aud": AUDIENCE,
            "iat": now - 60,
            "exp": now + seconds,
            **claims,
        }
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, body))
        return f"{signed}.{_encoded(self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


class Endpoint:
    """A token endpoint over TLS: client NAME has the secret `secret of NAME`, and its tokens say NAME.

    Attributes:
        url: where it is.
        asked: who asked, in order.
    """

    def __init__(self, issuer: Issuer, url: str) -> None:
        self.issuer, self.url = issuer, url
        self.asked: list[str] = []
        self.answer: bytes | None = None
        """What it answers instead of a token."""
        self.seconds = 3600


@contextmanager
def endpoint(folder: Path, issuer: Issuer) -> Iterator[Endpoint]:
    """An endpoint on loopback; `ca.pem` in the folder vouches for it."""
    authority = Authority.create("tokens")
    write_public(folder / "ca.pem", authority.pem)
    write_private(folder / "endpoint.pem", authority.issue("endpoint", ["127.0.0.1"]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "endpoint.pem")
    made = Endpoint(issuer, "")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            pair = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
            name, _, secret = pair.partition(":")
            made.asked.append(name)
            good = secret == f"secret+of+{name}" and form["grant_type"] == ["client_credentials"]
            body = json.dumps({"error": "invalid_client"}).encode()
            if good:
                token = issuer.token(name, made.seconds)
                body = made.answer or json.dumps({"access_token": token, "expires_in": made.seconds}).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing is said on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made.url = f"https://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
