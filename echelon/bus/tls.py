"""TLS and identity of a connection to a broker, from files that may be replaced while the process runs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from echelon.bus.bearer import Bearer
from echelon.config.broker import SecuritySettings
from echelon.config.reading import read_file
from echelon.errors import ConfigError
from echelon.passphrase import Passphrase, check_encrypted, read_optional

MAX_FILE_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Files:
    """What stands in the files, byte for byte."""

    ca: bytes
    certificate: bytes | None
    key: bytes | None
    passphrase: Passphrase | None
    password: bytes | None


class _Loaded(NamedTuple):
    """What the files give: for connections, who this is, its password, and when its certificate ends."""

    context: ssl.SSLContext
    principal: str
    password: str | None
    ends: datetime | None


class _Context(ssl.SSLContext):
    """Hands every new connection to the context that is valid now; connections that are open keep theirs."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`, which asyncio calls once for each connection."""
        return self.current.wrap_bio(*args, **kwargs)


class Identity:
    """Who this process is to one broker, and whom it takes for that broker.

    TLS 1.2 or newer; the broker's certificate must come from the one given authority and name the host that was
    asked for. `refresh` reads the files again.

    Attributes:
        settings: where the files are.
        context: for `asyncio.open_connection` and its like.
        principal: the certificate's common name, or the SASL user name.
        password: the SASL password; None with a certificate or a token.
        bearer: source of SASL's tokens; None with a certificate or a password.
        ends: when the certificate in use ends; None with a password or a token.

    Args:
        settings: where the files are.
        now: the time, for tests.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be; or the certificate has ended, or begins later.
    """

    def __init__(
        self, settings: SecuritySettings, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.settings = settings
        self._now = now
        files = _read(settings)
        self.context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        self.context.current, self.principal, self.password, self.ends = _load(settings, files, now())
        token = None if settings.sasl is None else settings.sasl.token
        self.bearer = None if token is None else Bearer(token)
        self._files: _Files | None = files
        self._problem = ""

    def refresh(self) -> bool:
        """Read the files again. Returns whether new connections use something else from now on.

        Files that cannot be used, and a certificate that is worse than the one in use (it has ended, begins later, or
        names another principal), are named in the log, once, and the old ones stay in use.
        """
        try:
            files = _read(self.settings)
            if files == self._files:
                return False
            loaded = _load(self.settings, files, self._now())
            if loaded.principal != self.principal:
                raise ConfigError(
                    f"they name {loaded.principal!r}, and this process is {self.principal!r}: a broker would take "
                    "it for somebody else; give the files of the same principal, or start the process again"
                )
        except ConfigError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "certificates were replaced by some that cannot be used, the old ones stay: %s", error
                )
            return False
        self._problem, self._files = "", files
        self.context.current, _, self.password, self.ends = loaded
        until = "" if self.ends is None else f", until {self.ends:%Y-%m-%d %H:%M} UTC"
        log.info("certificates of %r were replaced; new connections use them%s", self.principal, until)
        return True


def _read(settings: SecuritySettings) -> _Files:
    sasl = settings.sasl
    return _Files(
        ca=_bytes(settings.ca, "ca"),
        certificate=None if settings.certificate is None else _bytes(settings.certificate, "certificate"),
        key=None if settings.key is None else _bytes(settings.key, "key"),
        passphrase=read_optional(settings.passphrase_file),
        password=None
        if sasl is None or sasl.password_file is None
        else _bytes(sasl.password_file, "sasl.password_file"),
    )


def _bytes(path: Path, field: str) -> bytes:
    return read_file(path, f"security.{field}:", MAX_FILE_BYTES, advice="Check the path and its permissions")


def _load(settings: SecuritySettings, files: _Files, now: datetime) -> _Loaded:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks host names and demands a certificate
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=files.ca.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"security.ca: {settings.ca} is not a certificate in PEM format ({_reason(error)}); "
            "give the file of the broker's certificate authority"
        ) from error
    if settings.sasl is not None:
        where = settings.sasl.password_file
        password = None if where is None else _password(where, files.password or b"")
        return _Loaded(context, settings.sasl.principal, password, None)
    assert settings.certificate is not None
    assert files.certificate is not None
    where = settings.certificate if settings.key is None else settings.key
    key_file = files.certificate if files.key is None else files.key
    check_encrypted(
        f"security: the private key in {where}", key_file, files.passphrase, "security.passphrase_file"
    )
    try:
        # An empty password at least, so that an encrypted key is an error and not a question on the terminal.
        secret = b"" if files.passphrase is None else files.passphrase.secret
        context.load_cert_chain(settings.certificate, settings.key, password=secret)
        chain = x509.load_pem_x509_certificates(files.certificate)
    except (ssl.SSLError, OSError, ValueError) as error:
        both = settings.certificate if settings.key is None else f"{settings.certificate} with {settings.key}"
        opened = "" if files.passphrase is None else f" that the passphrase in {files.passphrase.path} opens"
        raise ConfigError(
            f"security.certificate: {both} is not a certificate chain with its private key in PEM format{opened} "
            f"({_reason(error)}); the key must be PKCS#8, and belong to the first certificate"
        ) from error
    _check_time(settings.certificate, chain[0], now)
    names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    principal = str(names[0].value) if names else chain[0].subject.rfc4514_string()
    return _Loaded(context, principal, None, chain[0].not_valid_after_utc)


def _check_time(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= ends:
        raise ConfigError(
            f"security.certificate: {path} ended at {ends:%Y-%m-%d %H:%M} UTC, and no broker takes it any more: "
            "have a new one signed for the same principal, and put it in its place"
        )
    if now < begins:
        raise ConfigError(
            f"security.certificate: {path} is not valid yet: it begins at {begins:%Y-%m-%d %H:%M} UTC, and the "
            f"clock of this machine says {now:%Y-%m-%d %H:%M} UTC. Compare the clocks of this machine and of "
            "the one that signed it"
        )


def _password(path: Path, secret: bytes) -> str:
    try:
        password = secret.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"security.sasl.password_file: {path} is not UTF-8 text") from error
    if not password:
        raise ConfigError(f"security.sasl.password_file: {path} is empty; write the password into it")
    return password


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
