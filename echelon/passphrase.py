"""Passphrases of private keys: read from files, so that none stands on a command line or in a configuration."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from echelon.errors import ConfigError

MAX_BYTES = 1023
"""Longest passphrase: OpenSSL takes no longer one for a key in PEM."""


@dataclass(frozen=True)
class Passphrase:
    """A passphrase.

    Attributes:
        path: the file that it was read from, for messages.
        secret: its 1 to `MAX_BYTES` bytes; never shown.
    """

    path: Path
    secret: bytes = field(repr=False)


def read_passphrase(path: Path) -> Passphrase:
    """The passphrase that a file holds, without one newline at its end.

    Raises:
        ConfigError: the file cannot be read, is empty or too long, or other users may read or write it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(MAX_BYTES + 3)  # the longest, a newline of two bytes, and one more
    except OSError as error:
        raise ConfigError(
            f"passphrase file {path} cannot be read: {error.strerror}. Check the path and its permissions"
        ) from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(
            f"passphrase file {path} can be read or written by every user (mode {stat.S_IMODE(mode):04o}): "
            f"chmod 600 {path}, and take another passphrase if somebody may have read it"
        )
    secret = text.removesuffix(b"\n").removesuffix(b"\r") if text.endswith(b"\n") else text
    if not secret:
        raise ConfigError(f"passphrase file {path} is empty: write the passphrase into it")
    if len(secret) > MAX_BYTES:
        raise ConfigError(
            f"passphrase file {path} has more than {MAX_BYTES} bytes: choose a shorter passphrase"
        )
    return Passphrase(path, secret)


def read_optional(path: Path | None) -> Passphrase | None:
    """The passphrase that a file holds; None where none is named.

    Raises:
        ConfigError: as `read_passphrase`.
    """
    return None if path is None else read_passphrase(path)


def is_encrypted(pem: bytes) -> bool:
    """Whether a private key in PEM is encrypted: as PKCS#8 is, or in OpenSSL's older way."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in pem or b"Proc-Type: 4,ENCRYPTED" in pem


def check_encrypted(what: str, pem: bytes, passphrase: Passphrase | None, setting: str) -> None:
    """Check that a key is encrypted if and only if there is a passphrase for it.

    A key in the clear is refused where a passphrase is configured: whoever did that believes that it is encrypted.

    Args:
        what: the key and its file, for the message.
        pem: the file's content.
        passphrase: what the configuration has for it.
        setting: where a passphrase's file is named, for the message.

    Raises:
        ConfigError: it has none and needs one, or the other way round.
    """
    if is_encrypted(pem) and passphrase is None:
        raise ConfigError(f"{what} is encrypted: name the file of its passphrase with {setting}")
    if passphrase is not None and not is_encrypted(pem):
        raise ConfigError(
            f"{what} is not encrypted, and {setting} names {passphrase.path}: encrypt the key, or leave out the "
            "passphrase"
        )
