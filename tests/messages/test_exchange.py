from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from echelon.messages.envelope import MAX_DSSE_BYTES, Dsse, Signer
from echelon.messages.exchange import (
    EXCHANGE,
    MAX_BOUNDARIES,
    MAX_MERGED,
    MAX_METRICS,
    MAX_WINDOWS,
    Close,
    CloseReason,
    Commit,
    Delta,
    DeltaCodec,
    Genesis,
    LogHead,
    Merged,
    Pace,
    Payload,
    Refusal,
    RefusalReason,
    WindowSummary,
    most_windows,
)
from echelon.messages.keys import KeyEnd, KeyNext, KeyRole, KeyStatement
from echelon.messages.wire import Message, Refused, pack, unpack

U16, U32, U63 = (1 << 16) - 1, (1 << 32) - 1, (1 << 63) - 1
ID, DIGEST = b"\xff" * 16, b"\xff" * 32
PAYLOAD = Payload(transfer=ID, length=U63, sha256=DIGEST)
WINDOW = WindowSummary(
    window=U63,
    heads=U32,
    n=U63,
    weight=U63,
    weight2=U63,
    roster_root=DIGEST,
    norm2=U63,
    mean2=U63,
    tokens=U63,
    loss=U63,
    loss_tokens=U63,
    eval_commit=U63,
    eval_loss=U63,
    eval_tokens=U63,
)
HEADS = tuple(LogHead(boundary=U16, size=U63, root=DIGEST) for _ in range(MAX_BOUNDARIES))
STATEMENT = KeyStatement(
    run=ID,
    role=KeyRole.CONTROLLER,
    place=U16,
    number=U63,
    former=DIGEST,
    public=DIGEST,
    proof=2 * DIGEST,
    signature=2 * DIGEST,
)
LARGEST: tuple[Message, ...] = (
    Genesis(
        run=ID,
        index=U63,
        manifest_length=U63,
        manifest_sha256=DIGEST,
        adapter_sha256=DIGEST,
        payload=PAYLOAD,
        prefix=DIGEST,
    ),
    Delta(
        run=ID,
        boundary=U16,
        seq=U63,
        base_commit=U63,
        base_sha256=DIGEST,
        seen_size=U63,
        seen_root=DIGEST,
        windows=(WINDOW,) * MAX_WINDOWS,
        codec=DeltaCodec.INT16,
        exponent=-(1 << 63),
        sync_us=U63,
        spacing_us=U63,
        payload=PAYLOAD,
        prefix=DIGEST,
    ),
    Commit(
        run=ID,
        index=U63,
        commit=U63,
        merged=(Merged(boundary=U16, seq=U63, staleness=U32, weight=U63),) * MAX_MERGED,
        heads=HEADS,
        pace=Pace(steps=(1 << 31) - 1, windows=MAX_WINDOWS, mu_ppm=U63),
        measured=(-(1 << 63),) * 16,
        tokens=U63,
        adapter_sha256=DIGEST,
        state_sha256=DIGEST,
        payload=PAYLOAD,
        prefix=DIGEST,
    ),
    Refusal(
        run=ID,
        index=U63,
        boundary=U16,
        seq=U63,
        offset=U63,
        reason=RefusalReason.BAD_SIGNATURE,
        prefix=DIGEST,
    ),
    Close(
        run=ID,
        index=U63,
        commits=U63,
        reason=CloseReason.PATIENCE,
        heads=HEADS,
        adapter_sha256=DIGEST,
        prefix=DIGEST,
    ),
    *(
        kind(run=ID, index=U63, statement=STATEMENT, read=U63, root=DIGEST, prefix=DIGEST)
        for kind in (KeyNext, KeyEnd)
    ),
)


@pytest.mark.parametrize("message", LARGEST, ids=lambda m: m.kind)
def test_the_largest_of_each_fits_what_may_cross(message: Message) -> None:
    assert (
        len(message.encode()) <= message.largest == (16 if message.kind in ("commit", "close") else 8) * 1024
    )
    envelope = Dsse.seal_message(Signer(b"\x01" * 32), message).encode()
    assert len(envelope) <= MAX_DSSE_BYTES
    opened = Dsse.decode(envelope)
    assert type(message).decode(opened.payload, limit=message.largest) == message


@pytest.mark.parametrize("metrics", range(MAX_METRICS + 1))
def test_a_delta_with_as_many_metrics_and_windows_as_may_be_fits(metrics: int) -> None:
    [delta] = [message for message in LARGEST if isinstance(message, Delta)]
    window = WINDOW.model_copy(update={"metrics": (U63,) * (2 * metrics)})
    most = most_windows(metrics)
    largest = delta.model_copy(update={"windows": (window,) * most})
    assert len(largest.encode()) <= Delta.largest
    assert Delta.decode(largest.encode(), limit=Delta.largest) == largest


def test_metrics_are_left_out_where_there_are_none_and_nowhere_else() -> None:
    [delta] = [message for message in LARGEST if isinstance(message, Delta)]
    one = delta.model_copy(update={"windows": (WINDOW,)})
    assert b"metrics" not in one.encode()
    fields: Any = unpack(one.encode())
    for metrics in ((), [U63] * (2 * MAX_METRICS + 1), [-1], ["a"], None):
        forged = {**fields, "windows": [{**fields["windows"][0], "metrics": metrics}]}
        with pytest.raises(Refused):
            Delta.decode(pack(forged))


def test_the_set_is_closed() -> None:
    assert {m.kind for m in EXCHANGE} == {m.kind for m in LARGEST}


@pytest.mark.parametrize("message", LARGEST, ids=lambda m: m.kind)
def test_no_field_is_free_text_or_a_float(message: Message) -> None:
    """Strings on the wire are names from enumerations alone, so nothing can be smuggled in words."""
    for name, value in message:
        assert not isinstance(value, float), name
        if isinstance(value, str):
            assert value in {*DeltaCodec, *RefusalReason, *CloseReason}, name


@pytest.mark.parametrize("message", LARGEST, ids=lambda m: m.kind)
def test_integers_are_bounded(message: Message) -> None:
    for name, value in message:
        if type(value) is int:
            with pytest.raises(ValidationError):
                type(message).model_validate({**dict(message), name: 1 << 64})


def test_one_window_too_many_is_refused() -> None:
    delta = LARGEST[1]
    longer = delta.model_copy(update={"windows": (WINDOW,) * (MAX_WINDOWS + 1)})
    with pytest.raises(Refused):
        Delta.decode(longer.encode())


def test_equal_payloads_of_different_things_are_different_transfers() -> None:
    assert Payload.of(b"x", b"commit 1").transfer != Payload.of(b"x", b"commit 2").transfer
    assert Payload.of(b"x", b"commit 1") == Payload.of(b"x", b"commit 1")
