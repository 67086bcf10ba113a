"""A connection for administration, through confluent-kafka: aiokafka's admin client knows no ACLs, no SCRAM users."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echelon.bus.bearer import Bearer
from echelon.config.broker import BrokerSettings, SaslSettings
from echelon.config.reading import read_text
from echelon.errors import BusError, ConfigError
from echelon.passphrase import check_encrypted, read_optional

if TYPE_CHECKING:
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import AdminClient, ClusterMetadata

TIMEOUT = 20.0
"""Seconds that one request to a broker may take."""
CONTACT = 10.0
"""Seconds that a broker has to answer at all."""
MAX_PASSWORD_BYTES = 1024

Setting = str | int | Callable[[str], tuple[str, float]]
"""Value of one of librdkafka's settings: text, a number, or the function that gives a token and when it ends."""

_log = logging.getLogger(__name__)


class Connection:
    """One principal's connection to one broker for administration.

    Attributes:
        client: confluent-kafka's admin client.
        where: the broker's address, for messages.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        """Prepare it; nothing is sent yet.

        Raises:
            ConfigError: confluent-kafka is missing, the URL is not `kafka://…`, or a file of `security` is not usable.
        """
        try:
            from confluent_kafka import KafkaException
            from confluent_kafka.admin import AdminClient
        except ImportError as error:
            raise ConfigError(
                "administration of Kafka needs confluent-kafka; run: pip install 'echelon[admin]'"
            ) from error
        self.where = settings.url
        self._failure: type[Exception] = KafkaException
        self._errors: list[str] = []
        # confluent-kafka's own type leaves callbacks out.
        config: dict[str, Any] = {**client_settings(settings), "error_cb": self._note}
        try:
            self.client: AdminClient = AdminClient(config, logger=_log)
        except KafkaException as error:
            raise ConfigError(f"{settings.url}: its security settings are not usable: {error}") from error

    def metadata(self, timeout: float = CONTACT) -> ClusterMetadata:
        """What the broker says of itself and of the topics that the principal may see.

        Raises:
            BusError: no answer within `timeout` seconds, or the broker or its certificate was refused; the message
                has the broker's or the TLS library's own words.
        """
        self._errors.clear()
        try:
            return self.client.list_topics(timeout=timeout)
        except self._failure as error:
            self.client.poll(0)
            reasons = "; ".join(dict.fromkeys(self._errors)) or str(error)
            raise BusError(f"{self.where}: no answer within {timeout:g} s: {reasons}") from error

    def _note(self, error: KafkaError) -> None:
        if len(self._errors) < 8:
            self._errors.append(str(error))


def client_settings(settings: BrokerSettings) -> dict[str, Setting]:
    """A broker and a principal in librdkafka's words.

    Raises:
        ConfigError: the URL is not `kafka://host:port,…`, or the password file is not usable.
    """
    scheme, mark, servers = settings.url.partition("://")
    if scheme != "kafka" or not mark or not servers:
        raise ConfigError(f"broker {settings.url!r}: administration needs a URL like kafka://host:port")
    found: dict[str, Setting] = {
        "bootstrap.servers": servers.partition("?")[0].rstrip("/"),
        "client.id": "echelon-admin",
        "socket.timeout.ms": int(TIMEOUT * 1000),
    }
    security = settings.security
    if security is None:
        return found
    for path in (security.ca, security.certificate, security.key):
        if path is not None and not path.is_file():
            raise ConfigError(f"broker {settings.url}: there is no file {path}; check `security`")
    found["ssl.ca.location"] = str(security.ca)
    if security.sasl is not None:
        found |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": security.sasl.mechanism,
            **_credentials(security.sasl),
        }
    else:
        assert security.certificate is not None  # SecuritySettings takes one of the two
        found |= {
            "security.protocol": "SSL",
            "ssl.certificate.location": str(security.certificate),
            "ssl.key.location": str(security.key or security.certificate),
        }
        passphrase = read_optional(security.passphrase_file)
        key = security.key or security.certificate
        check_encrypted(f"the private key in {key}", key.read_bytes(), passphrase, "security.passphrase_file")
        if passphrase is not None:
            try:
                found["ssl.key.password"] = passphrase.secret.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ConfigError(
                    f"passphrase file {passphrase.path} is not UTF-8 text, which administration needs"
                ) from error
    return found


def _credentials(sasl: SaslSettings) -> dict[str, Setting]:
    """The password, or who gives a token."""
    if sasl.token is not None:
        bearer = Bearer(sasl.token)
        bearer.check()
        return {"oauth_cb": lambda _: bearer.token()}
    assert sasl.username is not None  # SaslSettings asks for both with a password
    assert sasl.password_file is not None
    return {"sasl.username": sasl.username, "sasl.password": _password(sasl.password_file)}


def _password(path: Path) -> str:
    text = read_text(path, "password file", MAX_PASSWORD_BYTES)
    if not text:
        raise ConfigError(f"password file {path} is empty: 1 to {MAX_PASSWORD_BYTES} bytes are taken")
    return text.removesuffix("\n").removesuffix("\r")
