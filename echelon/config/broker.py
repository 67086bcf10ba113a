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


class SaslSettings(Settings):
    """SASL/SCRAM over TLS, for brokers that know users by name instead of by certificate."""

    mechanism: Literal["SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="Which SCRAM."
    )
    username: str = Field(min_length=1, max_length=256, description="The principal's name.")
    password_file: Path = Field(description="File that holds the password; a final newline is left out.")


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
    sasl: SaslSettings | None = Field(default=None, description="SASL/SCRAM, instead of a certificate.")
    reload: float = Field(
        default=10.0, gt=0, le=86_400, allow_inf_nan=False,
        description="Seconds between two looks whether certificates were replaced.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.certificate is None) == (self.sasl is None):
            raise ValueError("give either certificate (mutual TLS) or sasl (SCRAM over TLS), one of them")
        if self.key is not None and self.certificate is None:
            raise ValueError("key belongs to a certificate: give both")
        if self.passphrase_file is not None and self.certificate is None:
            raise ValueError("passphrase_file is of a certificate's key: give both, or leave it out")
        return self

    def beside(self, folder: Path) -> SecuritySettings:
        """The same with relative paths taken from `folder`."""
        sasl = None
        if self.sasl is not None:
            sasl = self.sasl.model_copy(update={"password_file": folder / self.sasl.password_file})
        return self.model_copy(
            update={
                "ca": folder / self.ca,
                "certificate": None if self.certificate is None else folder / self.certificate,
                "key": None if self.key is None else folder / self.key,
                "passphrase_file": None if self.passphrase_file is None else folder / self.passphrase_file,
                "sasl": sasl,
            }
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
        found = BrokerSettings.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, BrokerSettings)
        raise ConfigError(
            f"broker file {path} is not one (it needs `url` and, with TLS, `security`):\n" + "\n".join(lines)
        ) from None
    return found.beside(path.parent)
