"""Certificates of one broker: an authority of its own, and what it issues to the broker and to every principal.

Each broker trusts one authority and no other, so a certificate of one boundary cannot even shake hands with another
boundary's broker or with the exchange's. The principal is the certificate's common name. All keys are EC P-256;
certificates follow RFC 5280. Times are wall-clock times, because that is what certificates are judged by.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from echelon.config.reading import read_file
from echelon.errors import ConfigError
from echelon.passphrase import Passphrase, check_encrypted
from echelon.private import create_private, private_folder
from echelon.provision.identities import encryption

BROKER = "broker"
"""Common name of every broker's own certificate."""
BREAK_GLASS = "break-glass"
"""Common name of the one principal, besides the broker, that may do everything."""

CA_DAYS = 3650
LEAF_DAYS = 397
MAX_FILE_BYTES = 1 << 16

_COMMON_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """The certificate authority of one broker.

    Attributes:
        certificate: its certificate, self-signed; public.
        key: its private key. Whoever has it can be anybody to the broker.
    """

    certificate: x509.Certificate
    key: EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str, *, days: int = CA_DAYS) -> Authority:
        """A new authority.

        Args:
            name: its common name, for people: `boundary a`.
            days: for how long it is valid.

        Raises:
            ConfigError: the name is empty or longer than 64 characters, or days is below 1.
        """
        if not 1 <= len(name) <= 64:
            raise ConfigError(f"authority {name!r}: its name needs 1 to 64 characters")
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, subject, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path, passphrase: Passphrase | None = None) -> Authority:
        """An authority from its two PEM files; the key's may be encrypted.

        Args:
            certificate: PEM file of the authority's certificate.
            key: PEM file of its private key.
            passphrase: what the key is encrypted with; None: it is not.

        Raises:
            ConfigError: a file cannot be read, is not what it should be, or the two do not belong together.
        """
        try:
            parsed = x509.load_pem_x509_certificate(_read(certificate))
        except ValueError as error:
            raise ConfigError(f"{certificate}: is not a certificate in PEM: {error}") from error
        pem = _read(key)
        check_encrypted(f"the authority's key {key}", pem, passphrase, "ca_passphrase_file")
        try:
            private = load_pem_private_key(pem, None if passphrase is None else passphrase.secret)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
            if passphrase is not None:
                raise ConfigError(
                    f"{key}: cannot be opened with the passphrase in {passphrase.path}; it is another one's, or the "
                    "key's file is damaged"
                ) from error
            raise ConfigError(f"{key}: is not a private key in PEM: {error}") from error
        if not isinstance(private, EllipticCurvePrivateKey):
            raise ConfigError(f"{key}: is not an EC key; make the authority anew")
        if _public(private.public_key()) != _public(parsed.public_key()):
            raise ConfigError(f"{key}: is not the key of {certificate}; give the two of one authority")
        try:
            constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
        except x509.ExtensionNotFound:
            constraints = None
        if constraints is None or not constraints.value.ca:
            raise ConfigError(f"{certificate}: is not a certificate authority; give the broker's own")
        return cls(parsed, private)

    def save(self, certificate: Path, key: Path, passphrase: Passphrase | None = None) -> None:
        """Write the two PEM files; the key's can be read by its owner alone, and is encrypted with a passphrase.

        Args:
            certificate: new PEM file, readable by everybody.
            key: new PEM file, readable by its owner.
            passphrase: what to encrypt the key with; None: it is not encrypted.

        Raises:
            ConfigError: a file exists, or cannot be written.
        """
        write_private(key, _pem(self.key, passphrase))
        write_public(certificate, self.pem)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM: what everybody trusts who connects to the broker."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        common_name: str,
        hosts: Sequence[str] = (),
        *,
        days: int = LEAF_DAYS,
        passphrase: Passphrase | None = None,
    ) -> bytes:
        """A new key and its certificate in one PEM: the PKCS#8 key, then the chain (without the authority itself).

        A certificate with hosts serves a broker, which is a client too (of its own controller); one without is a
        client's alone and cannot stand for a broker.

        Args:
            common_name: the principal; letters, digits, dots, hyphens and underscores, at most 64.
            hosts: names and IP addresses under which a broker is reached (subject alternative names).
            days: for how long it is valid; never longer than the authority.
            passphrase: what the key is encrypted with; None: it is not.

        Raises:
            ConfigError: the name, a host or the number of days is not allowed.
        """
        key = generate_private_key(SECP256R1())
        return _pem(key, passphrase) + self._sign(key.public_key(), common_name, hosts, days)

    def sign_request(self, request: bytes, common_name: str, *, days: int = LEAF_DAYS) -> bytes:
        """The client certificate (PEM) for a certificate request whose key stays with whoever made it.

        Args:
            request: in PEM.
            common_name: the principal; the request must ask for this one.
            days: how long the certificate is valid.

        Raises:
            ConfigError: the request is not one in PEM, its own signature is wrong, its key is not EC P-256, or it
                asks for another common name.
        """
        try:
            asked = x509.load_pem_x509_csr(request)
        except ValueError as error:
            raise ConfigError(f"certificate request of {common_name}: is not one in PEM: {error}") from error
        names = [str(name.value) for name in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [common_name]:
            raise ConfigError(f"certificate request of {common_name}: asks for {names} instead")
        if not asked.is_signature_valid:
            raise ConfigError(f"certificate request of {common_name}: its signature is wrong; make it anew")
        return self._sign(asked.public_key(), common_name, (), days)

    def _sign(self, public: object, common_name: str, hosts: Sequence[str], days: int) -> bytes:
        if not _COMMON_NAME.fullmatch(common_name):
            # Whatever else stood there might change what the broker's mapping rule makes of it.
            raise ConfigError(
                f"certificate of {common_name!r}: a common name has 1 to 64 letters, digits, dots, hyphens and "
                "underscores, the first and the last a letter or a digit"
            )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            _builder(subject, self.certificate.subject, public, days, self.certificate.not_valid_after_utc)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        )
        if hosts:
            names = [_host(common_name, host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def request(common_name: str, passphrase: Passphrase | None = None) -> tuple[bytes, bytes]:
    """A new key (PKCS#8 PEM) and the certificate request for it (PEM), where the authority's key is elsewhere."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return _pem(key, passphrase), asked.public_bytes(Encoding.PEM)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read (mode 0600), in a folder of the kind if it has to be made.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    _write(path, content, private=True)


def write_public(path: Path, content: bytes) -> None:
    """Write a new file that everybody may read (mode 0644), folders included as needed.

    Raises:
        ConfigError: it exists, or cannot be written.
    """
    _write(path, content, private=False)


def _write(path: Path, content: bytes, *, private: bool) -> None:
    try:
        if private and not path.parent.is_dir():
            private_folder(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        if private:
            create_private(path, content)
            return
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already; keys and certificates are never overwritten") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _read(path: Path) -> bytes:
    return read_file(path, "key or certificate", MAX_FILE_BYTES)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: object,
    days: int,
    last: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    if days < 1:
        raise ConfigError(f"certificate of {subject.rfc4514_string()}: {days} days; it needs at least 1")
    if not isinstance(public, EllipticCurvePublicKey) or not isinstance(public.curve, SECP256R1):
        raise ConfigError(f"certificate of {subject.rfc4514_string()}: its key is not EC P-256")
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    until = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)  # clocks of other machines may be behind
        .not_valid_after(until if last is None else min(until, last))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(common_name: str, host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
            raise ValueError("it needs letters, digits, dots and hyphens")
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"certificate of {common_name}: host {host!r} is not one: {error}") from error


def _pem(key: EllipticCurvePrivateKey, passphrase: Passphrase | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(passphrase))


def _public(key: object) -> bytes:
    if not isinstance(key, EllipticCurvePublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
