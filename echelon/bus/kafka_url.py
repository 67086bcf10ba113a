"""What a `kafka://` URL means."""

from __future__ import annotations

import ipaddress
import math
import re
from urllib.parse import parse_qsl

from echelon.bus.kafka import KafkaBus
from echelon.bus.tls import Identity
from echelon.clock import is_virtual
from echelon.config.broker import SecuritySettings
from echelon.errors import ConfigError

TIMEOUT_S = 30.0
"""Seconds for which a call tries to reach its broker, unless the URL says otherwise."""

MAX_TIMEOUT_S = 3600.0
MAX_SERVERS = 64

_SERVER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


def open_kafka(
    url: str, rest: str, security: SecuritySettings | None, *, read_only: bool, max_read_bytes: int
) -> KafkaBus:
    """The bus behind a URL; `rest` is what follows `kafka://`.

    Args:
        url: the whole URL, for errors.
        rest: addresses and options.
        security: TLS files of this client; None: plaintext, which only a broker on this machine or
            `?plaintext=allow` permits.
        read_only: refuse to publish.
        max_read_bytes: most bytes that one read returns, unless a single record is larger.

    Raises:
        ConfigError: the URL, or a file that `security` names, cannot be used.
    """
    if is_virtual():
        raise ConfigError(f"bus {url!r}: Kafka does not run on a virtual clock; use memory:// or sqlite://")
    place, _, query = rest.partition("?")
    servers = tuple(_server(url, server) for server in place.rstrip("/").split(","))
    if len(servers) > MAX_SERVERS:
        raise ConfigError(f"bus {url!r}: {len(servers)} addresses; a few nodes of the cluster are enough")
    options = dict(parse_qsl(query, keep_blank_values=True))
    plaintext = options.pop("plaintext", None)
    timeout = _timeout(url, options.pop("timeout", None))
    if options or plaintext not in (None, "allow"):
        raise ConfigError(f"bus {url!r}: the options are timeout=SECONDS and plaintext=allow, no others")
    if security is None and plaintext is None and not all(_is_loopback(host) for host, _ in servers):
        raise ConfigError(
            f"bus {url!r}: without TLS only a broker on this machine is spoken to; "
            "give a `security` block, or add ?plaintext=allow if the network is safe"
        )
    if security is not None and plaintext is not None:
        raise ConfigError(
            f"bus {url!r}: plaintext=allow and a `security` block contradict each other; drop one"
        )
    identity = None if security is None else Identity(security)
    return KafkaBus(servers, identity, timeout=timeout, read_only=read_only, max_read_bytes=max_read_bytes)


def _server(url: str, server: str) -> tuple[str, int]:
    found = _SERVER.fullmatch(server)
    if found is None or not 1 <= int(found[3]) <= 65_535:
        raise ConfigError(f"bus {url!r}: {server!r} is no address; use kafka://host:port,host:port")
    return found[1] or found[2], int(found[3])


def _timeout(url: str, text: str | None) -> float:
    if text is None:
        return TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= MAX_TIMEOUT_S:
        raise ConfigError(f"bus {url!r}: timeout is {text!r}; give 0.1 to {MAX_TIMEOUT_S:g} seconds")
    return seconds


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
