"""A device sees each message once, in its turn, with one content."""

from __future__ import annotations

import pytest

from echelon.messages.handshake import Sealed, SharesList
from echelon.messages.wire import DeviceId
from echelon.secagg.faults import Abort, Aborted
from echelon.secagg.turns import ClientStep, Turns

ME = DeviceId("d0")
SHOWN = SharesList(window=3, devices=("d0", "d1"))
ANSWER = Sealed(window=3, entries=())


def turns() -> Turns:
    made = Turns(3, ME)
    made.step = ClientStep.SHARED
    return made


def reason_of(call: Turns, shown: SharesList, step: ClientStep = ClientStep.SHARED) -> Abort:
    with pytest.raises(Aborted) as left:
        call.answered(shown, step, Sealed)
    return left.value.reason


def test_a_message_gets_its_answer_again_and_nothing_else_does() -> None:
    order = turns()
    assert order.answered(SHOWN, ClientStep.SHARED, Sealed) is None
    assert order.done(SHOWN, ClientStep.UPLOADED, ANSWER) is ANSWER
    assert order.step is ClientStep.UPLOADED
    assert order.answered(SHOWN, ClientStep.SHARED, Sealed) is ANSWER
    assert reason_of(order, SharesList(window=3, devices=("d0",))) is Abort.FORK


def test_messages_of_another_window_and_out_of_turn_end_the_window() -> None:
    assert reason_of(turns(), SharesList(window=4, devices=("d0", "d1"))) is Abort.WINDOW
    assert reason_of(turns(), SHOWN, ClientStep.UPLOADED) is Abort.ORDER


def test_who_has_left_answers_nothing_any_more() -> None:
    order = turns()
    order.done(SHOWN, ClientStep.UPLOADED, ANSWER)
    order.abort(Abort.KEYS, "as if")
    assert reason_of(order, SHOWN) is Abort.KEYS
    with pytest.raises(Aborted, match="window 3: as if"):
        order.check_alive()
