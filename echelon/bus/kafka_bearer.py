"""Bearer tokens in aiokafka's connections."""

from __future__ import annotations

import asyncio

import aiokafka.errors as kafka
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from typing_extensions import override

from echelon.bus.bearer import Bearer
from echelon.errors import EchelonError


class BearerTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Gives each new connection a token that holds."""

    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer

    @override
    async def token(self) -> str:
        """The token, as aiokafka asks for it.

        Raises:
            kafka.KafkaConnectionError: there is none now; the connection is tried again.
        """
        try:
            token, _ = await asyncio.to_thread(self._bearer.token)
        except EchelonError as error:
            raise kafka.KafkaConnectionError(str(error)) from error
        return token


class TokenCheckingConnection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """A connection that reads a broker's refusal of a token.

    A broker refuses a token with an answer that looks like a success and has its reason in it (RFC 7628,
    section 3.2.2). aiokafka's own connection takes it for one, and is then hung up on.
    """

    @override
    def authenticator_oauth(self) -> OAuthAuthenticator:
        """See aiokafka."""
        return _Reading(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


class _Reading(OAuthAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    @override
    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if self._token_sent and payload:
            raise kafka.SaslAuthenticationFailed(payload.decode("utf-8", "replace")[:200])
        found: tuple[bytes, bool] | None = await super().step(payload)
        return found
