"""The way to a Kafka broker: addresses and identity, whether the broker is there, and single questions to it.

aiokafka's own clients try again in silence. Here each failure is seen, so that a bus can say that its broker is away,
for how long, and that it is back; and so that a refusal, which no repetition mends, is told from a lost connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import aiokafka.errors as kafka
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import CloseReason
from aiokafka.protocol.metadata import MetadataRequest

from echelon.backoff import Backoff
from echelon.bus.base import TopicPartition
from echelon.bus.kafka_bearer import BearerTokens, TokenCheckingConnection
from echelon.bus.tls import Identity
from echelon.errors import BusClosed, BusDenied, BusError, ConnectionLost

T = TypeVar("T")

REQUEST_S = 10.0
"""Seconds after which a broker that does not answer a small question is taken for gone."""

BULK_S = 30.0
"""Seconds that a request with megabytes in it, or in its answer, may take on a slow line."""

STALL_S = 2.0
"""Seconds without an answer to such a request after which the broker is asked whether it is there."""

CHECK_S = 5.0
"""Seconds that it has for saying so."""

ATTEMPT_S = (5.0, 10.0)
"""Shortest and longest time that one attempt to reach a broker gets, with finding out why it failed. It doubles after
an attempt that came to no answer at all, so that a slow line gets more; a host whose address is gone answers never."""

PROBE_S = 5.0
"""Seconds that finding out why a connection failed may take, for each address."""

ALERT_S = 0.5
"""Seconds in which a broker that refuses our certificate says so, after a handshake that looked complete to us."""

HANG_UP_S = 1.0
"""Seconds that closing a connection may take."""

BACKOFF_S = (0.1, 3.0)
"""Shortest and longest pause between two attempts to reach a broker, before jitter."""

GAP_S = ATTEMPT_S[1] + HANG_UP_S + BACKOFF_S[1]
"""Most seconds from the beginning of one attempt to reach a broker to the next, for as long as it is away."""

UNKNOWN_S = 1.0
"""Seconds for which a topic or a leader that a broker does not know is asked for again: news travels."""

log = logging.getLogger(__name__)


async def hang_up(client: AIOKafkaClient) -> None:
    """Close a client, within a second even if its broker is gone: TLS waits half a minute for a farewell."""
    closing = asyncio.get_running_loop().create_task(client.close())
    try:
        await asyncio.wait([closing], timeout=HANG_UP_S)
    finally:
        if not closing.done():
            closing.cancel()


def hasten(client: AIOKafkaClient, limit: Callable[[], float]) -> None:
    """Have a client give up connecting after some seconds, however long its requests may take.

    aiokafka gives a connection as long to come about as it gives a request to be answered, and holds up all others of
    the client meanwhile.

    Args:
        client: which has not connected yet.
        limit: asked for the seconds, at each attempt.
    """
    bootstrap, connection = client.bootstrap, client._get_conn

    async def prompt_bootstrap() -> None:
        try:
            async with asyncio.timeout(limit()):
                await bootstrap()
        except TimeoutError:
            raise kafka.KafkaConnectionError("no address answers") from None

    async def prompt_connection(node: int, **options: object) -> object | None:
        try:
            async with asyncio.timeout(limit()):
                return await connection(node, **options)  # type: ignore[no-any-return]
        except TimeoutError:
            client.force_metadata_update()  # as after every connection that does not come about
            return None

    client.bootstrap, client._get_conn = prompt_bootstrap, prompt_connection


def cut(client: AIOKafkaClient) -> None:
    """Break all connections of a client: what waits for an answer on them fails at once, and is asked again."""
    for connection in list(client._conns.values()):
        connection.close(reason=CloseReason.CONNECTION_BROKEN)


class KafkaLink:
    """One process's connection to one broker.

    Args:
        servers: host and port of one or more nodes.
        identity: for TLS; None for plain text.
        timeout: seconds after which a question that cannot be asked fails.
    """

    def __init__(
        self, servers: tuple[tuple[str, int], ...], identity: Identity | None, timeout: float
    ) -> None:
        self.servers = servers
        self.identity = identity
        self.timeout = timeout
        self.name = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in servers
        )
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._met = False
        self._lost_at: float | None = None
        self._attempt_s = ATTEMPT_S[0]
        self.losses = 0
        """How often the broker was found to be away. A connection from before the last time may be dead in silence."""
        self._client: AIOKafkaClient | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        # Every process has a pause of its own, so that a broker that is back is not met by all of them at once.
        self._retry_ms = random.randint(100, 400)
        aiokafka = logging.getLogger("aiokafka")
        if aiokafka.level == logging.NOTSET:
            # It has a line for every attempt of every connection. What matters of that is said here, once.
            aiokafka.setLevel(logging.CRITICAL + 1)

    # ---- is the broker there? --------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the broker answered when it was last spoken to."""
        return self._met and self._lost_at is None

    @property
    def away_seconds(self) -> float:
        """Since when it has not."""
        if self.connected:
            return 0.0
        return self._loop.time() - (self._began if self._lost_at is None else self._lost_at)

    @property
    def principal(self) -> str:
        """Who this process is to the broker."""
        return "an anonymous client" if self.identity is None else f"principal {self.identity.principal!r}"

    def alive(self) -> None:
        """The broker has answered."""
        if self._lost_at is not None:
            log.info("broker %s is back after %.1f s", self.name, self.away_seconds)
        self._met, self._lost_at = True, None

    def lost(self, why: str) -> None:
        """The broker has not answered, or cannot be reached."""
        if self._lost_at is None and not self._closed:
            self._lost_at = self._loop.time()
            self.losses += 1
            log.warning("broker %s is away (%s); it is tried until it is back", self.name, why)

    # ---- connections -----------------------------------------------------------------------------

    def options(self, request_s: float = REQUEST_S) -> dict[str, object]:
        """What aiokafka's clients, producers and consumers need to connect; a request may take `request_s` seconds."""
        options: dict[str, object] = {
            "bootstrap_servers": [f"{host}:{port}" for host, port in self.servers],
            "client_id": "echelon",
            "request_timeout_ms": int(request_s * 1000),
            "retry_backoff_ms": self._retry_ms,
        }
        return options | self._secured()

    def _secured(self) -> dict[str, object]:
        if self.identity is None:
            return {}
        sasl = self.identity.settings.sasl
        if sasl is None:
            return {"security_protocol": "SSL", "ssl_context": self.identity.context}
        secured: dict[str, object] = {
            "security_protocol": "SASL_SSL",
            "ssl_context": self.identity.context,
            "sasl_mechanism": sasl.mechanism,
        }
        if self.identity.bearer is not None:
            return {**secured, "sasl_oauth_token_provider": BearerTokens(self.identity.bearer)}
        return {
            **secured,
            "sasl_plain_username": sasl.username,
            "sasl_plain_password": self.identity.password,
        }

    async def connect(self, request_s: float = REQUEST_S) -> AIOKafkaClient:
        """A new client that has spoken to the broker; the caller closes it.

        Args:
            request_s: seconds that each of its requests may take.

        Raises:
            ConnectionLost: the broker cannot be reached. Takes no longer than `ATTEMPT_S` and `HANG_UP_S` allow.
            BusDenied: it, or we, refused the other's certificate or password.
        """
        client = AIOKafkaClient(**self.options(request_s))
        within = self._attempt_s
        try:
            async with asyncio.timeout(within):
                try:
                    await client.bootstrap()
                except kafka.KafkaError as error:
                    raise await self.failure() from error
        except TimeoutError:
            await hang_up(client)
            self._attempt_s = min(2 * within, ATTEMPT_S[1])
            raise self._unreached(f"it does not answer within {within:g} s") from None
        except BaseException:
            await hang_up(client)
            raise
        self.hasten(client)
        self._attempt_s = ATTEMPT_S[0]
        self.alive()
        return client

    def hasten(self, client: AIOKafkaClient) -> None:
        """Have a client that is not this link's give up connecting as soon as this link's own would."""
        hasten(client, lambda: self._attempt_s)

    async def failure(self) -> ConnectionLost | BusDenied:
        """After a connection has not come about: the error that says why."""
        try:
            why = await self._diagnosis()
        except BusDenied as denied:
            return denied
        return self._unreached(why)

    def _unreached(self, why: str) -> ConnectionLost:
        self.lost(why)
        return ConnectionLost(f"broker {self.name} cannot be reached: {why}. Start it, or check the address")

    async def _diagnosis(self) -> str:
        """Why no connection came about; raises BusDenied if trying again would be of no use."""
        why = "no address was given"
        for host, port in self.servers:
            try:
                async with asyncio.timeout(PROBE_S):
                    await self._probe(host, port)
                why = "it did not answer"
            except TimeoutError:
                why = "it does not answer"
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                why = "it hung up during the TLS handshake"
            except ssl.SSLCertVerificationError as error:
                assert self.identity is not None
                raise BusDenied(
                    f"broker {host}:{port} shows a certificate that {self.identity.settings.ca} does not vouch for: "
                    f"{error.verify_message}. Check the address, and that the authority is that broker's"
                ) from error
            except ssl.SSLError as error:
                raise BusDenied(
                    f"broker {host}:{port} refuses the TLS handshake of {self.principal}: "
                    f"{error.reason or error}. Use a certificate that this broker's own authority issued"
                ) from error
            except (kafka.SaslAuthenticationFailed, kafka.AuthenticationFailedError) as error:
                bearer = self.identity is not None and self.identity.bearer is not None
                raise BusDenied(
                    f"broker {host}:{port} does not accept the {'token' if bearer else 'password'} of "
                    f"{self.principal}: {error}"
                ) from error
            except (kafka.UnsupportedSaslMechanismError, kafka.IllegalSaslStateError) as error:
                raise BusDenied(f"broker {host}:{port} does not do that kind of SASL: {error}") from error
            except (OSError, kafka.KafkaError) as error:
                why = str(error) or type(error).__name__
        return why

    async def _probe(self, host: str, port: int) -> None:
        identity = self.identity
        context = None if identity is None else identity.context
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            if identity is not None and identity.settings.sasl is None:
                # With TLS 1.3 a client's certificate is looked at after the client believes to be connected.
                with suppress(TimeoutError):
                    async with asyncio.timeout(ALERT_S):
                        await reader.read(1)
        finally:
            writer.close()
        if identity is not None and identity.settings.sasl is not None:
            request_ms = int(PROBE_S * 1000)
            conn = TokenCheckingConnection(host, port, request_timeout_ms=request_ms, **self._secured())
            await conn.connect()
            await conn.close()

    # ---- questions -------------------------------------------------------------------------------

    async def ask(self, question: Callable[[AIOKafkaClient], Awaitable[T]]) -> T:
        """Ask the broker something, again and again until it answers.

        Raises:
            ConnectionLost: it did not within `timeout` seconds.
            BusDenied, BusError: it answered that it will not.
            BusClosed: the link was closed.
        """
        backoff = Backoff(bounds=BACKOFF_S)
        why = "it does not answer"
        try:
            async with asyncio.timeout(self.timeout):
                while True:
                    self._check_open()
                    client = None
                    try:
                        client = await self._shared()
                        answer = await question(client)
                    except ConnectionLost as error:
                        why = str(error)
                    except kafka.KafkaError as error:
                        refusal = self.refusal(error, "its question")
                        if refusal is not None:
                            raise refusal from error
                        why = str(error)
                        if client is not None:
                            await self._drop(client)
                        await self._check_token()
                    else:
                        self.alive()
                        return answer
                    await backoff.wait()
        except TimeoutError:
            self.lost(why)
            if self._client is not None:
                await self._drop(self._client)
            raise ConnectionLost(
                f"broker {self.name} did not answer within {self.timeout:g} s ({why}); try again later"
            ) from None

    async def _check_token(self) -> None:
        """After a failure: raises BusDenied where the broker refuses the token, which looks like a lost line."""
        if self.identity is not None and self.identity.bearer is not None:
            denied = await self.failure()
            if isinstance(denied, BusDenied):
                raise denied

    async def _shared(self) -> AIOKafkaClient:
        async with self._opening:
            if self._client is None:
                self._client = await self.connect()
            return self._client

    async def _drop(self, client: AIOKafkaClient) -> None:
        if self._client is client:
            self._client = None
        await hang_up(client)

    async def reach(self) -> None:
        """See that the broker answers now.

        Raises:
            ConnectionLost: it does not.
            BusDenied: it, or we, refused the other's certificate or password.
        """
        client = await self._shared()
        try:
            await client.send(client.get_random_node(), MetadataRequest([]))
        except kafka.KafkaError as error:
            await self._drop(client)
            raise self._unreached(str(error) or "it does not answer") from error
        self.alive()

    async def check(self) -> None:
        """See whether the broker is there, for `connected`. Takes no longer than `CHECK_S`; raises nothing."""
        try:
            async with asyncio.timeout(CHECK_S):
                await self.reach()
        except TimeoutError:
            self.lost("it does not answer")
            if self._client is not None:
                await self._drop(self._client)
        except BusError:
            return  # said by `connect`, or by `reach`

    def refusal(self, error: kafka.KafkaError, what: str) -> BusError | None:
        """What a broker's answer means to the caller; None if it is worth asking again."""
        if isinstance(
            error,
            kafka.TopicAuthorizationFailedError
            | kafka.GroupAuthorizationFailedError
            | kafka.ClusterAuthorizationFailedError,
        ):
            return BusDenied(
                f"broker {self.name} denies {self.principal} {what}: "
                "ask whoever runs `echelon topics apply` for the right, or use another identity"
            )
        if isinstance(error, kafka.IncompatibleBrokerVersion):
            return BusError(f"broker {self.name} is too old or too new: {error}. Use Kafka 4")
        # Codes that are newer than aiokafka's table come as UnknownError; those that were found are all transient.
        passing = (kafka.UnknownError, kafka.BrokerNotAvailableError, kafka.ReplicaNotAvailableError)
        if (
            isinstance(error, kafka.BrokerResponseError)
            and not error.retriable
            and not isinstance(error, passing)
        ):
            return BusError(f"broker {self.name} refuses {what}: {error}")
        return None

    async def leader(self, client: AIOKafkaClient, at: TopicPartition) -> int:
        """The node to ask about a partition.

        Raises:
            BusError: there is no such topic or partition.
            BusDenied: the topic may not even be seen.
            kafka.KafkaError: the leader is not known at present.
        """
        end = self._loop.time() + UNKNOWN_S
        while True:
            node: int | None = client.cluster.leader_for_partition(KafkaPartition(*at))
            if node is not None and node >= 0:
                return node
            error = await self._described(client, at)
            if error is not None and self._loop.time() >= end:
                raise error
            await asyncio.sleep(self._retry_ms / 1000)
            await client.force_metadata_update()

    async def _described(self, client: AIOKafkaClient, at: TopicPartition) -> BusError | None:
        """What is wrong with a partition that has no leader; None if it has one."""
        # Never an all-topics request: that one leaves out what may not be seen, as if it were not there.
        request = MetadataRequest([at.topic], allow_auto_topic_creation=False)
        answer = await client.send(client.get_random_node(), request)
        for code, _, _, partitions in answer.topics:
            if code == kafka.TopicAuthorizationFailedError.errno:
                raise self.denied("to see", at.topic)
            if code in (kafka.UnknownTopicOrPartitionError.errno, kafka.InvalidTopicError.errno):
                return BusError(f"topic {at.topic!r} does not exist; create it first")
            if code != 0:
                raise kafka.for_code(code)()
            count = len(partitions)
            if not 0 <= at.partition < count:
                return BusError(
                    f"topic {at.topic} has {count} partition(s); there is no partition {at.partition}"
                )
        return None

    def denied(self, verb: str, topic: str) -> BusDenied:
        """The error for what an access rule of a topic forbids; `verb` is as in "to write"."""
        return BusDenied(
            f"broker {self.name} does not allow {self.principal} {verb} topic {topic}: "
            "ask whoever runs `echelon topics apply`, or use another identity"
        )

    async def aclose(self) -> None:
        """Let go of the shared connection. Idempotent."""
        self._closed = True
        if self._client is not None:
            await self._drop(self._client)

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("the bus is closed; open it again")
