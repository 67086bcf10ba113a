"""What a `kafka://` URL means."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from echelon.bus.base import Bus
from echelon.bus.kafka import KafkaBus
from echelon.bus.run_bus import RunBus
from echelon.bus.run_names import check_run
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
) -> Bus:
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
    found = read_kafka(url, rest)
    servers, timeout = found.servers, found.timeout
    check_plaintext(url, found, secured=security is not None)
    identity = None if security is None else Identity(security)
    bus = KafkaBus(servers, identity, timeout=timeout, read_only=read_only, max_read_bytes=max_read_bytes)
    return RunBus(bus, found.run) if found.run else bus


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """What stands in a `kafka://` URL: nodes (host, port), seconds to try, whether no TLS is allowed, and the name of
    the run whose topics are meant ("": those without one)."""

    servers: tuple[tuple[str, int], ...]
    timeout: float
    plaintext: bool
    run: str = ""


def check_kafka(url: str, *, secured: bool) -> None:
    """Check a `kafka://` URL as whoever opens it does.

    Raises:
        ConfigError: it cannot be used.
    """
    check_plaintext(url, read_kafka(url, url.partition("://")[2]), secured=secured)


def read_kafka(url: str, rest: str) -> KafkaAddress:
    """The parts of a URL; `rest` is what follows `kafka://`.

    Raises:
        ConfigError: it is none.
    """
    place, _, query = rest.partition("?")
    servers = tuple(_server(url, server) for server in place.rstrip("/").split(","))
    if len(servers) > MAX_SERVERS:
        raise ConfigError(f"bus {url!r}: {len(servers)} addresses; a few nodes of the cluster are enough")
    options = dict(parse_qsl(query, keep_blank_values=True))
    plaintext = options.pop("plaintext", None)
    timeout = _timeout(url, options.pop("timeout", None))
    run = options.pop("run", "")
    if options or plaintext not in (None, "allow"):
        raise ConfigError(
            f"bus {url!r}: the options are timeout=SECONDS, run=NAME and plaintext=allow, no others"
        )
    return KafkaAddress(servers, timeout, plaintext is not None, check_run(run) if run else "")


def run_of(url: str) -> str:
    """The name of the run whose topics a `kafka://` URL means; "" for those without one.

    Raises:
        ConfigError: it is no such URL.
    """
    return read_kafka(url, url.partition("://")[2]).run


def url_of(url: str, run: str) -> str:
    """A `kafka://` URL, for another run's topics; "" for those without one.

    Raises:
        ConfigError: the run's name is not allowed.
    """
    place, _, query = url.partition("?")
    options = {name: value for name, value in parse_qsl(query, keep_blank_values=True) if name != "run"}
    if run:
        options["run"] = check_run(run)
    return f"{place}?{urlencode(options)}" if options else place


def check_plaintext(url: str, address: KafkaAddress, *, secured: bool) -> None:
    """Check that TLS is used, or is not needed.

    Args:
        url: for messages.
        address: what it says.
        secured: whether TLS is used.

    Raises:
        ConfigError: neither, or both are said.
    """
    if not secured and not address.plaintext and not all(_is_loopback(host) for host, _ in address.servers):
        raise ConfigError(
            f"bus {url!r}: without TLS only a broker on this machine is spoken to; "
            "give a `security` block, or add ?plaintext=allow if the network is safe"
        )
    if secured and address.plaintext:
        raise ConfigError(
            f"bus {url!r}: plaintext=allow and a `security` block contradict each other; drop one"
        )


def _server(url: str, server: str) -> tuple[str, int]:
    parts = _SERVER.fullmatch(server)
    if parts is None or not 1 <= int(parts[3]) <= 65_535:
        raise ConfigError(f"bus {url!r}: {server!r} is no address; use kafka://host:port,host:port")
    return parts[1] or parts[2], int(parts[3])


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
