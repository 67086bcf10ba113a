"""Plain Kafka clients that know nothing of Echelon: what they are told is what the broker said."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from echelon.config.broker import BrokerSettings
from echelon.provision.kafka.admin import TIMEOUT, Connection, client_settings
from tools.kafka.stack import Broker
from tools.kafka.wipe import PATIENCE

DENIED = KafkaError.TOPIC_AUTHORIZATION_FAILED
NO_COORDINATOR = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)


def handshake(broker: Broker, certificate: BrokerSettings | None) -> str:
    """How the broker ends a TLS handshake of a client that believes the broker: `welcome`, or the alert it sends.

    The client trusts this broker's own authority, so that nothing but the broker can refuse.
    """
    context = ssl.create_default_context(cafile=str(broker.folder / "ca.pem"))
    if certificate is not None:
        context.load_cert_chain(certificate.security.certificate)
    for _ in range(10):
        try:
            return _shake(context, broker.ports.client)
        except ConnectionError:
            continue  # it hung up before its alert could be read: what it said is lost, so ask again
    return "closed without a word"


def _shake(context: ssl.SSLContext, port: int) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        # Of TLS 1.3 a client knows that it was refused when it reads. An ApiVersions request (key 18, version 0,
        # correlation id 1, no client id) is what the broker answers to those it took.
        try:
            secure.sendall(bytes.fromhex("0000000a 0012 0000 00000001 ffff"))
            answer = secure.recv(8)
        except ssl.SSLError as error:
            return str(error.reason)
    return (
        "welcome" if len(answer) == 8 and answer[4:] == bytes.fromhex("00000001") else f"closed: {answer!r}"
    )


def said_in_log(broker: Broker, start: int, pattern: str, seconds: float = 10.0) -> bool:
    """Whether the broker writes a line that matches, beyond the first `start` bytes of its log, in that time."""
    until = time.monotonic() + seconds
    while True:
        with broker.log.open("rb") as log:
            log.seek(start)
            if re.search(pattern, log.read().decode("utf-8", "replace")):
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.05)


def write(settings: BrokerSettings, topics: Iterable[str], **options: object) -> dict[str, int]:
    """Send one record to each topic; the error code that the broker answered for each, 0 for none."""
    codes: dict[str, int] = {}
    producer = Producer(
        {**client_settings(settings), "message.timeout.ms": 20_000, "linger.ms": 0, "log_level": 0, **options}
    )
    for topic in topics:

        def told(error: KafkaError | None, _message: object, topic: str = topic) -> None:
            codes[topic] = 0 if error is None else error.code()

        producer.produce(topic, b"value", partition=0, on_delivery=told)
    assert producer.flush(30) == 0
    return codes


def read(settings: BrokerSettings, topics: Iterable[str], seconds: float = PATIENCE) -> dict[str, int]:
    """Read each topic from its start until a record or an error comes; the error code for each, 0 for a record."""
    consumer = Consumer(
        {**client_settings(settings), "group.id": "nobody", "enable.auto.commit": False, "log_level": 0}
    )
    codes: dict[str, int] = {}
    wanted = set(topics)
    try:
        for topic in wanted:  # who may not even see a topic is told so here, and gets no answer to a fetch
            error = consumer.list_topics(topic, timeout=seconds).topics[topic].error
            if error is not None:
                codes[topic] = error.code()
        consumer.assign([TopicPartition(topic, 0, 0) for topic in wanted - set(codes)])
        until = time.monotonic() + seconds
        while set(codes) < wanted and time.monotonic() < until:
            message = consumer.poll(0.5)
            if message is not None and message.topic() in wanted:
                codes[message.topic()] = 0 if message.error() is None else message.error().code()
    finally:
        consumer.close()
    assert set(codes) == wanted, f"no answer for {wanted - set(codes)}"
    return codes


def ask_group(settings: BrokerSettings, group: str, seconds: float = PATIENCE) -> int:
    """Ask for the members of a consumer group; the error code, 0 for an answer."""
    connection = Connection(settings)
    until = time.monotonic() + seconds
    while True:
        (answer,) = connection.client.describe_consumer_groups([group], request_timeout=TIMEOUT).values()
        try:
            answer.result(PATIENCE)
        except KafkaException as error:
            code = int(error.args[0].code())
            if code not in NO_COORDINATOR or time.monotonic() > until:
                return code
            time.sleep(0.2)  # the broker makes its topic of group offsets at the first question
        else:
            return 0


def keep_offset(settings: BrokerSettings, group: str, topic: str) -> int:
    """Keep an offset for a consumer group, as its members do; the error code, 0 if the broker takes it."""
    consumer = Consumer({**client_settings(settings), "group.id": group, "log_level": 0})
    try:
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    except KafkaException as error:
        return int(error.args[0].code())
    finally:
        consumer.close()
    return 0


def begin_transaction(settings: BrokerSettings, name: str) -> int:
    """Begin to write in transactions under a name; the error code, 0 if the broker takes it."""
    producer = Producer({**client_settings(settings), "transactional.id": name, "log_level": 0})
    try:
        producer.init_transactions(20)
    except KafkaException as error:
        return int(error.args[0].code())
    return 0
