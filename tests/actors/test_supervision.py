"""When a broker's refusals end a service."""

from __future__ import annotations

from echelon.actors.supervision import BrokerPatience


def test_the_grace_begins_with_the_first_refusal_in_a_row():
    patience = BrokerPatience(grace=120.0)
    assert not patience.refused(1000.0)
    assert not patience.refused(1120.0)
    assert patience.refused(1120.5)


def test_another_failure_ends_the_row():
    patience = BrokerPatience(grace=120.0)
    assert not patience.refused(1000.0)
    patience.failed_otherwise()
    assert not patience.refused(1200.0)
    assert patience.refused(1321.0)


def test_a_service_that_was_let_in_before_never_gives_up():
    patience = BrokerPatience(grace=120.0, healthy=30.0)
    assert patience.lived(603.0)
    assert not patience.refused(603.0)
    assert not patience.lived(0.1)
    assert not patience.refused(603.0 + 7 * 86400)


def test_a_short_life_is_no_admission():
    patience = BrokerPatience(grace=120.0, healthy=30.0)
    assert not patience.lived(29.0)
    assert not patience.refused(29.0)
    assert patience.refused(150.0)
