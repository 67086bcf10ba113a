"""The broker map: where the exchange's broker and every boundary's are, and who vouches for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

import yaml
from pydantic import Field, ValidationError, model_validator

from echelon.bus.kafka_url import url_of
from echelon.config.broker import STANDARD_AUTHORIZER, Mechanism, SaslSettings, TokenSettings
from echelon.config.problems import describe
from echelon.config.reading import load_yaml, read_file
from echelon.config.training import Settings
from echelon.errors import ConfigError
from echelon.messages.names import BoundaryName
from echelon.validation import sentence

MAX_FILE_BYTES = 1 << 20
EXCHANGE = "exchange"
PASSWORD_FILE, TOKEN_FILE = "password", "token"
"""Beside a configuration, where a broker takes passwords or tokens."""
_SQLITE = "sqlite:///"


class SaslEntry(Settings):
    """How clients of a broker log in over TLS."""

    mechanism: Mechanism = Field(
        default="SCRAM-SHA-512",
        description="SCRAM and PLAIN: everybody has a file `password` beside their configuration. OAUTHBEARER: a file "
        "`token`, or `token` below.",
    )
    token: TokenSettings | None = Field(
        default=None,
        description="Where each client's token comes from, its paths as that client sees them (OAUTHBEARER). None: the "
        "file `token` beside its configuration. {principal} in client_id stands for the client's name.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.token is not None and self.mechanism != "OAUTHBEARER":
            raise ValueError(f"{self.mechanism} takes a password: leave out token")
        return self

    def of(self, principal: str, prefix: str = "") -> SaslSettings:
        """What stands in the configuration of a client; the broker takes it for `principal`.

        Args:
            principal: its name.
            prefix: before names of files, where one configuration has two brokers.
        """
        if self.mechanism != "OAUTHBEARER":
            return SaslSettings(
                mechanism=self.mechanism, username=principal, password_file=Path(f"{prefix}{PASSWORD_FILE}")
            )
        token = TokenSettings(file=Path(f"{prefix}{TOKEN_FILE}")) if self.token is None else self.token
        if token.client_id is not None:
            token = token.model_copy(update={"client_id": token.client_id.replace("{principal}", principal)})
        return SaslSettings(mechanism=self.mechanism, username=principal, token=token)


class BrokerEntry(Settings):
    """One broker, as whoever sets up a federation knows it."""

    url: str = Field(min_length=1, max_length=2048, description="kafka://host:port,… or sqlite:///path.")
    ca: Path | None = Field(
        default=None,
        description="Certificate of the broker's authority (PEM). None: plain text, on loopback.",
    )
    ca_key: Path | None = Field(
        default=None, description="The authority's key (PEM). None: certificates are requested, not issued."
    )
    ca_passphrase_file: Path | None = Field(
        default=None, description="File with that key's passphrase. None: the key is not encrypted."
    )
    scram_url: str | None = Field(
        default=None, max_length=2048, description="The listener for SASL/SCRAM over TLS, if there is one."
    )

    sasl: SaslEntry | None = Field(
        default=None,
        description="How clients prove who they are, where they have no certificates. None: by certificates of `ca`.",
    )
    one_device_principal: bool = Field(
        default=False,
        description="Whether all devices of the boundary are one principal, BOUNDARY.devices: access rules then do not "
        "grow with enrolment, and no device can be shut out by itself.",
    )
    authorizer: str | None = Field(
        default=STANDARD_AUTHORIZER,
        min_length=1, max_length=256,
        description="Class that keeps the broker's access rules. null: access is decided elsewhere.",
    )  # fmt: skip
    replication: int = Field(
        default=1,
        ge=1,
        le=9,
        description="Nodes of the cluster that hold each partition; 1: a single broker.",
    )
    min_insync: int = Field(
        default=1, ge=1, le=9,
        description="Nodes that must have a record before it counts as written; 2 where replication is 3.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if not self.url.startswith(("kafka://", "sqlite://")):
            raise ValueError(f"url {self.url!r}: use kafka://host:port,… or sqlite:///path")
        if self.url.startswith("sqlite://") and (self.ca is not None or self.scram_url is not None):
            raise ValueError("an embedded log has no TLS: leave out ca, ca_key and scram_url")
        if self.min_insync > self.replication:
            raise ValueError(f"min_insync {self.min_insync} is above replication {self.replication}")
        if self.url.startswith("sqlite://") and self.replication > 1:
            raise ValueError("an embedded log is one file: leave out replication")
        if self.sasl is not None and (self.ca is None or self.ca_key is not None):
            raise ValueError(
                "sasl needs ca, which vouches for the broker, and no ca_key: nobody gets a certificate"
            )
        if self.ca_key is not None and self.ca is None:
            raise ValueError("ca_key belongs to a ca: give both")
        if self.ca_passphrase_file is not None and self.ca_key is None:
            raise ValueError("ca_passphrase_file is of a ca_key: give both, or leave it out")
        return self

    def beside(self, folder: Path) -> BrokerEntry:
        """The same with relative paths, that of an embedded log too, taken from `folder`."""
        url = self.url
        if url.startswith(_SQLITE):
            place, mark, query = url.removeprefix(_SQLITE).partition("?")
            url = _SQLITE + quote(str((folder / unquote(place)).absolute())) + mark + query
        return self.model_copy(
            update={
                "url": url,
                "ca": None if self.ca is None else folder / self.ca,
                "ca_key": None if self.ca_key is None else folder / self.ca_key,
                "ca_passphrase_file": None
                if self.ca_passphrase_file is None
                else folder / self.ca_passphrase_file,
            }
        )


class BrokerMap(Settings):
    """Every broker of a federation."""

    exchange: BrokerEntry = Field(description="The exchange's broker.")
    boundaries: dict[BoundaryName, BrokerEntry] = Field(
        description="The broker of each boundary, by its name."
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        for name, entry in self.boundaries.items():
            if entry.sasl is not None and not entry.one_device_principal:
                raise ValueError(
                    f"boundary {name}: with sasl all devices log in as one user, so it needs one_device_principal: true"
                )
        urls = [entry.url for entry in self.entries.values()]
        if len(set(urls)) < len(urls):
            raise ValueError(
                "two brokers have one url: every boundary, and the exchange, needs a broker of its own"
            )
        return self

    @property
    def entries(self) -> Mapping[str, BrokerEntry]:
        """Every broker by name: `exchange`, then the boundaries."""
        return {EXCHANGE: self.exchange, **self.boundaries}

    def replicated(self, replication: int, min_insync: int | None) -> BrokerMap:
        """The same where every broker is a cluster that holds each partition on so many nodes.

        Args:
            replication: nodes that hold each partition.
            min_insync: nodes that must have a record before it counts as written; None: all but one.

        Raises:
            ConfigError: more nodes must have a record than hold the partition, or an entry is an embedded log.
        """
        least = max(1, replication - 1) if min_insync is None else min_insync
        more = {"replication": replication, "min_insync": least}
        fields = self.model_dump()
        fields["exchange"] |= more
        for entry in fields["boundaries"].values():
            entry |= more
        try:
            return BrokerMap.model_validate(fields)
        except ValidationError as error:
            reason = sentence(error.errors(include_url=False)[0])
            raise ConfigError(f"replication {replication}, min-insync {least}: {reason}") from None

    def of_run(self, run: str) -> BrokerMap:
        """The same where topics carry the name of a run, so that brokers can hold several.

        Raises:
            ConfigError: the name is not allowed, or an entry is an embedded log.
        """
        fields = self.model_dump()
        for entry in (fields["exchange"], *fields["boundaries"].values()):
            if not entry["url"].startswith("kafka://"):
                raise ConfigError(
                    f"run {run}: {entry['url']} is an embedded log, a file for one run: leave --run out"
                )
            entry["url"] = url_of(entry["url"], run)
        return BrokerMap.model_validate(fields)

    def dump(self) -> str:
        """The file's text."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def load_brokers(path: Path) -> BrokerMap:
    """Read a broker map; its relative paths are relative to the file.

    Raises:
        ConfigError: it cannot be read, or is not one; the message says what and where.
    """
    advice = "The native stack writes one; or write it by hand"
    fields = load_yaml(read_file(path, "broker map", MAX_FILE_BYTES, advice=advice), f"broker map {path}")
    try:
        brokers = BrokerMap.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, BrokerMap)
        raise ConfigError(f"broker map {path}:\n" + "\n".join(lines)) from None
    folder = path.absolute().parent
    return BrokerMap(
        exchange=brokers.exchange.beside(folder),
        boundaries={name: entry.beside(folder) for name, entry in brokers.boundaries.items()},
    )
