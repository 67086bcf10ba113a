"""Bearer tokens for SASL/OAUTHBEARER: from a file that somebody keeps fresh, or from a token endpoint.

A token is opaque here: the broker checks it. All that is read of one is when it ends, and only where it is a JSON web
token (RFC 7519) that says so.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from echelon.config.broker import TokenSettings
from echelon.config.reading import read_file
from echelon.errors import BusError, ConfigError

MAX_TOKEN_BYTES = 1 << 16
"""Largest token, and largest answer of an endpoint."""
MAX_SECRET_BYTES = 1024
ENDPOINT_S = 10.0
"""Seconds that the endpoint has for its answer."""
UNKNOWN_S = 300.0
"""Seconds for which a token is taken to hold that does not say for how long it does."""
FRESH = 0.8
"""Part of its time for which a token from an endpoint is used; then another one is asked for."""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750, section 2.1: nothing in it ends the field of the SASL message that it stands in."""


class Bearer:
    """A source of tokens. May be called from several threads.

    Raises:
        ConfigError: the endpoint's certificate authority cannot be used.
    """

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._kept: tuple[str, float] | None = None
        self._ask_again = 0.0
        self._context: ssl.SSLContext | None = None
        if settings.url is not None:
            try:
                self._context = ssl.create_default_context(cafile=settings.ca)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"security.sasl.token.ca: {settings.ca} is not a certificate in PEM format ({error}); give the "
                    "file of the token endpoint's certificate authority"
                ) from error

    def check(self) -> None:
        """See whether the file, or the endpoint's secret, can be read; nothing is asked.

        Raises:
            ConfigError: it cannot.
        """
        if self._settings.file is not None:
            self._from_file(self._settings.file)
        else:
            self._secret()

    def token(self) -> tuple[str, float]:
        """A token that holds now, and when it ends, in seconds since 1970. May wait for the endpoint.

        Raises:
            ConfigError: a file cannot be read, or holds no token.
            BusError: the endpoint does not answer, or refuses.
        """
        if self._settings.file is not None:
            token = self._from_file(self._settings.file)
            return token, ends(token)
        with self._lock:
            if self._kept is None or time.time() >= self._ask_again:
                self._kept = self._from_endpoint()
                self._ask_again = time.time() + FRESH * (self._kept[1] - time.time())
            return self._kept

    @staticmethod
    def _from_file(path: Path) -> str:
        where = f"security.sasl.token.file: {path}"
        found = read_file(path, "security.sasl.token.file:", MAX_TOKEN_BYTES, advice="Who writes the token?")
        token = found.decode("latin-1").strip()
        if not _TOKEN.fullmatch(token):
            raise ConfigError(
                f"{where} holds no bearer token; its writer should put one there, and nothing else"
            )
        return token

    def _secret(self) -> str:
        path = self._settings.client_secret_file
        assert path is not None  # TokenSettings asks for it where there is a url
        found = read_file(path, "security.sasl.token.client_secret_file:", MAX_SECRET_BYTES)
        try:
            secret = found.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ConfigError(f"security.sasl.token.client_secret_file: {path} is not UTF-8 text") from error
        if not secret:
            raise ConfigError(
                f"security.sasl.token.client_secret_file: {path} is empty; write the secret there"
            )
        return secret

    def _from_endpoint(self) -> tuple[str, float]:
        """Ask for a token with client credentials (RFC 6749, section 4.4)."""
        url, who = self._settings.url, self._settings.client_id
        assert url is not None
        assert who is not None
        form = {"grant_type": "client_credentials"}
        if self._settings.scope is not None:
            form["scope"] = self._settings.scope
        pair = f"{urllib.parse.quote_plus(who)}:{urllib.parse.quote_plus(self._secret())}"
        request = urllib.request.Request(
            url,
            data=urllib.parse.urlencode(form).encode(),
            headers={
                "Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}",
                "Accept": "application/json",
            },
        )
        opener = urllib.request.build_opener(
            _NoRedirect(), urllib.request.HTTPSHandler(context=self._context)
        )
        try:
            with opener.open(request, timeout=ENDPOINT_S) as answer:
                body = answer.read(MAX_TOKEN_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(200).decode("utf-8", "replace")
            raise BusError(
                f"token endpoint {url} refuses client {who!r} with status {error.code}: {said}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise BusError(f"token endpoint {url} does not answer: {error}") from error
        return granted(body, f"token endpoint {url}")


def granted(body: bytes, where: str) -> tuple[str, float]:
    """The token in an endpoint's answer (RFC 6749, section 5.1), and when it ends.

    Raises:
        BusError: there is none in it.
    """
    if len(body) > MAX_TOKEN_BYTES:
        raise BusError(f"{where} answers with more than {MAX_TOKEN_BYTES} bytes")
    found = _map(body)
    token, seconds = found.get("access_token"), found.get("expires_in")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise BusError(f"{where} answers without an access_token; check its address")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 1e9:
        return token, time.time() + seconds
    return token, ends(token)


def ends(token: str) -> float:
    """When a token ends, in seconds since 1970: what it says itself, or `UNKNOWN_S` from now."""
    parts = token.split(".")
    if len(parts) == 3:
        try:
            claims = _map(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        except (binascii.Error, ValueError):
            claims = {}
        end = claims.get("exp")
        if isinstance(end, int | float) and not isinstance(end, bool) and 0 < end < 1e11:
            return float(end)
    return time.time() + UNKNOWN_S


def _map(text: bytes) -> dict[str, Any]:
    """The fields of a JSON object; none for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A secret goes where the settings say, and nowhere else."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Never follow: the answer then counts as a refusal."""
