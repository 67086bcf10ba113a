"""From a message to its signed records on a boundary's topic."""

from __future__ import annotations

from collections.abc import Iterator

from echelon.bus.base import Outgoing
from echelon.bus.chunks import NO_SCOPE, Origin, Transfer, TransferId, to_chunks
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Payload
from echelon.messages.split import SplitFrame
from echelon.messages.wire import Message
from echelon.rounds.effects import Publish


def seal(effect: Publish, signer: Signer, *, run: bytes, sender: str) -> Iterator[Outgoing]:
    """The signed records of a message, its chunks first; each is made when it is asked for.

    Args:
        effect: the message, its topic, and its payload if it has one.
        signer: has the sender's key.
        run: the run's id, 16 bytes.
        sender: the actor's name; it is the records' key.
    """
    message: Message = effect.message
    envelope = Envelope.seal(
        signer, message, run=run, topic=effect.topic, window=effect.window, sender=sender
    )
    key = sender.encode()
    payload = getattr(message, "payload", None)
    if isinstance(payload, Payload) and effect.payload is not None:
        transfer = Transfer(TransferId(payload.transfer), payload.length, payload.sha256)
        scope, order = NO_SCOPE, effect.window
        if isinstance(message, SplitFrame):
            scope, order = message.session, message.number
        yield from to_chunks(
            effect.payload,
            transfer,
            topic=effect.topic,
            key=key,
            partition=effect.partition,
            origin=Origin(run, signer.sign, scope, order),
        )
    yield Outgoing(effect.topic, envelope.encode(), key, (), effect.partition)
