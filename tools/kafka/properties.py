"""The properties of a broker, filled in from the templates in `docker/kafka`.

They are read from the checkout that this file belongs to.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from echelon.errors import ConfigError

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Listening:
    """Where one broker listens and where its files are.

    Attributes:
        bind: address of the network interface that clients reach; `0.0.0.0` in a container.
        host: the name that clients are sent to; it must stand in the broker's certificate.
        port: of mutual TLS.
        controller_port: of the broker's controller; on loopback alone.
        scram_port: of SCRAM over TLS; None for no such listener.
        data: folder of the broker's logs, as the broker sees it.
        secrets: folder of `broker.pem` and `ca.pem`, as the broker sees it.
    """

    bind: str
    host: str
    port: int
    controller_port: int
    data: Path
    secrets: Path
    scram_port: int | None = None


def templates() -> Path:
    """The folder of the templates and of the list of artifacts.

    Raises:
        ConfigError: the checkout lacks it.
    """
    place = Path(__file__).resolve().parents[2] / "docker" / "kafka"
    if (place / "server.properties").is_file():
        return place
    raise ConfigError(f"there is no server.properties in {place}; the checkout is not complete")


def render(listening: Listening) -> str:
    """A complete `server.properties`.

    Raises:
        ConfigError: a host, port or path cannot stand in the file, or a template lacks or has a hole too many.
    """
    for host in (listening.bind, listening.host):
        if not _HOST.fullmatch(host):
            raise ConfigError(f"broker properties: {host!r} is not a host name or IPv4 address")
    ports = [listening.port, listening.controller_port]
    ports += [] if listening.scram_port is None else [listening.scram_port]
    if len(set(ports)) != len(ports) or not all(1 <= port <= 65_535 for port in ports):
        raise ConfigError(f"broker properties: ports {ports} must differ and lie in 1 to 65535")
    for path in (listening.data, listening.secrets):
        if not path.is_absolute() or re.search(r"[\\,\x00-\x1f]", str(path)):
            # Kafka reads log.dirs as a list, and a backslash or a new line as the property format's own.
            raise ConfigError(
                f"broker properties: folder {str(path)!r} must be absolute, with no comma, backslash or new line"
            )
    names = ["server.properties", *([] if listening.scram_port is None else ["scram.properties"])]
    return "\n".join(_fill(templates() / name, listening) for name in names)


def _fill(path: Path, listening: Listening) -> str:
    try:
        return Template(path.read_text("utf-8")).substitute(
            {name: str(value) for name, value in asdict(listening).items()}
        )
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); install Echelon again") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: is not a template with these holes: {error}; restore it from the release"
        ) from error
