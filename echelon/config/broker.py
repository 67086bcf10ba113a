"""How a service reaches a broker: the URL, and one `security:` block for TLS and SASL."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from echelon.config.problems import describe
from echelon.config.reading import load_yaml, read_file
from echelon.config.training import Settings
from echelon.errors import ConfigError

MAX_FILE_BYTES = 1 << 16
STANDARD_AUTHORIZER = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
"""What keeps the access rules of a Kafka of one's own."""


Mechanism = Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER"]


class TokenSettings(Settings):
    """Where a bearer token comes from: a file that somebody keeps fresh, or an endpoint that gives one for a secret."""

    file: Path | None = Field(
        default=None,
        description="File with the token, read at each new connection. None: `url` is asked.",
    )
    url: str | None = Field(
        default=None, max_length=2048,
        description="https://… of an OAuth 2 token endpoint, asked with client credentials. None: `file` has it.",
    )  # fmt: skip
    client_id: str | None = Field(
        default=None, min_length=1, max_length=256, description="Who asks the endpoint."
    )
    client_secret_file: Path | None = Field(
        default=None, description="File with that client's secret; a final newline is left out."
    )
    scope: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Scope that is asked for. None: none is named.",
    )
    ca: Path | None = Field(
        default=None,
        description="PEM file with the endpoint's certificate authority. None: those of the system.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        asked = (self.client_id, self.client_secret_file, self.scope, self.ca)
        if (self.file is None) == (self.url is None):
            raise ValueError("give either file (a token) or url (an endpoint that gives one), one of them")
        if self.file is not None and any(field is not None for field in asked):
            raise ValueError("client_id, client_secret_file, scope and ca belong to url: leave them out")
        if self.url is not None:
            if not self.url.startswith("https://"):
                raise ValueError(f"url {self.url!r}: a secret is sent there, so use https://")
            if self.client_id is None or self.client_secret_file is None:
                raise ValueError("url needs client_id and client_secret_file")
        return self

    def beside(self, folder: Path) -> TokenSettings:
        """The same with relative paths taken from `folder`."""
        return self.model_copy(update=_taken_from(folder, self, ("file", "client_secret_file", "ca")))


class SaslSettings(Settings):
    """SASL over TLS, for brokers that know clients by a password or a token instead of by a certificate."""

    mechanism: Mechanism = Field(
        default="SCRAM-SHA-512",
        description="SCRAM and PLAIN take a password, OAUTHBEARER a token. PLAIN shows the broker the password itself.",
    )
    username: str | None = Field(
        default=None, min_length=1, max_length=256,
        description="The principal's name. With OAUTHBEARER the token names it, and this is for messages alone.",
    )  # fmt: skip
    password_file: Path | None = Field(
        default=None,
        description="File that holds the password (SCRAM, PLAIN); a final newline is left out.",
    )
    token: TokenSettings | None = Field(default=None, description="Where the token comes from (OAUTHBEARER).")

    @model_validator(mode="after")
    def _fits_the_mechanism(self) -> Self:
        if self.mechanism == "OAUTHBEARER":
            if self.token is None or self.password_file is not None:
                raise ValueError("OAUTHBEARER needs token, and no password_file")
        elif self.username is None or self.password_file is None or self.token is not None:
            raise ValueError(f"{self.mechanism} needs username and password_file, and no token")
        return self

    @property
    def principal(self) -> str:
        """Who this is to the broker, for messages."""
        if self.username is not None:
            return self.username
        assert self.token is not None  # only OAUTHBEARER goes without a name
        return self.token.client_id or f"of the token in {self.token.file}"

    def beside(self, folder: Path) -> SaslSettings:
        """The same with relative paths taken from `folder`."""
        token = None if self.token is None else self.token.beside(folder)
        return self.model_copy(update={**_taken_from(folder, self, ("password_file",)), "token": token})


def _taken_from(folder: Path, settings: Settings, names: tuple[str, ...]) -> dict[str, Path]:
    """Paths of the fields, those that are set, taken from `folder`."""
    found: dict[str, Path | None] = {name: getattr(settings, name) for name in names}
    return {name: folder / path for name, path in found.items() if path is not None}


class SecuritySettings(Settings):
    """Who the broker must be, and who this process is to it. Files are read again when they change."""

    ca: Path = Field(description="PEM file with the broker's certificate authority; no other is trusted.")
    certificate: Path | None = Field(
        default=None, description="PEM file with this process's certificate chain (mutual TLS)."
    )
    key: Path | None = Field(
        default=None, description="PEM file with the private key, PKCS#8. None: it stands in `certificate`."
    )
    passphrase_file: Path | None = Field(
        default=None,
        description="File with the private key's passphrase, for an encrypted key. None: it is not encrypted.",
    )
    sasl: SaslSettings | None = Field(default=None, description="SASL, instead of a certificate.")
    reload: float = Field(
        default=10.0, gt=0, le=86_400, allow_inf_nan=False,
        description="Seconds between two looks whether certificates were replaced.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.certificate is None) == (self.sasl is None):
            raise ValueError(
                "give either certificate (mutual TLS) or sasl (password or token over TLS), one of them"
            )
        if self.key is not None and self.certificate is None:
            raise ValueError("key belongs to a certificate: give both")
        if self.passphrase_file is not None and self.certificate is None:
            raise ValueError("passphrase_file is of a certificate's key: give both, or leave it out")
        return self

    def beside(self, folder: Path) -> SecuritySettings:
        """The same with relative paths taken from `folder`."""
        paths = _taken_from(folder, self, ("ca", "certificate", "key", "passphrase_file"))
        return self.model_copy(
            update={**paths, "sasl": None if self.sasl is None else self.sasl.beside(folder)}
        )


class BrokerSettings(Settings):
    """One broker."""

    url: str = Field(
        min_length=1, max_length=2048,
        description="kafka://host:port,host:port, or sqlite:///path for the embedded log.",
    )  # fmt: skip
    security: SecuritySettings | None = Field(
        default=None, description="TLS and identity. None: plain text, for brokers on loopback only."
    )

    def beside(self, folder: Path) -> BrokerSettings:
        """The same with relative paths taken from `folder`."""
        security = None if self.security is None else self.security.beside(folder)
        return self.model_copy(update={"security": security})


def load_broker(path: Path) -> BrokerSettings:
    """Read a file that holds one broker; its relative paths are relative to the file.

    Raises:
        ConfigError: it cannot be read, or is not that; the message says what and where.
    """
    fields = load_yaml(read_file(path, "broker file", MAX_FILE_BYTES), f"broker file {path}")
    try:
        settings = BrokerSettings.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, BrokerSettings)
        raise ConfigError(
            f"broker file {path} is not one (it needs `url` and, with TLS, `security`):\n" + "\n".join(lines)
        ) from None
    return settings.beside(path.parent)
