"""Users with passwords (SCRAM over TLS), for clients that cannot hold a certificate."""

from __future__ import annotations

import os

from echelon.errors import BusError
from echelon.provision.kafka.admin import TIMEOUT, Connection

ITERATIONS = 8192
"""Rounds of PBKDF2: what each guess costs whoever has the broker's disk. RFC 7677 asks for 4096 or more."""


def put_user(connection: Connection, user: str, password: str) -> None:
    """Give a user a password, or a new one. The user has the rights of the principal of the same name.

    Args:
        connection: as an administrator.
        user: its name, which is its principal's.
        password: the broker keeps a salted hash of it (SCRAM-SHA-512).

    Raises:
        BusError: the broker does not answer, or denies it; only break-glass may.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

    change = UserScramCredentialUpsertion(
        user,
        ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS),
        password.encode(),
        os.urandom(32),
    )
    try:
        for answer in connection.client.alter_user_scram_credentials(
            [change], request_timeout=TIMEOUT
        ).values():
            answer.result(TIMEOUT + 5)
    except KafkaException as error:
        raise BusError(f"{connection.where}: user {user} was not added: {error.args[0]}") from error
