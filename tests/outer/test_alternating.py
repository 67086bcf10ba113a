"""Alternating factors: what moves follows from commit numbers, and what is late goes where it belongs."""

from __future__ import annotations

from copy import deepcopy
from fractions import Fraction

import numpy as np
import pytest

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import decode
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger
from echelon.messages.adapter import AdapterLayout, Factor, factor_mask
from echelon.messages.exchange import DeltaCodec, RefusalReason
from echelon.messages.manifest import FactorRule, OuterKind, RunManifest
from echelon.outer.alternating import Factors, factor_of
from echelon.rounds.controller.core import ControllerCore
from tests.audit.synthetic import terms, window
from tests.rounds.controller.test_core import DIM, advance, core_of, make

A, B = slice(0, DIM // 2), slice(DIM // 2, DIM)


def alternating(kind: OuterKind = OuterKind.AVERAGE, **changes: object) -> RunManifest:
    found = terms(kind=kind, boundaries=2, **changes)  # type: ignore[arg-type]
    return found.model_copy(update={"factors": FactorRule.ALTERNATING})


def vector_of(seed: int, commit: int) -> np.ndarray:
    """A delta that departs from this commit: zero in the frozen factor."""
    vector = np.random.default_rng(seed).normal(0, 0.01, DIM)
    vector[B if factor_of(commit) is Factor.A else A] = 0.0
    return vector


def test_b_is_trained_first_and_then_they_take_turns() -> None:
    assert [factor_of(commit) for commit in range(4)] == [Factor.B, Factor.A, Factor.B, Factor.A]
    assert Factors(terms()).trained(3) is None
    assert Factors(terms()).moving(3) is None
    assert Factors(alternating()).trained(3) is Factor.A


def test_masks_are_read_off_the_layout() -> None:
    layout = AdapterLayout.of(
        {
            "l.q.lora_A.weight": (2, 3), "l.q.lora_B.weight": (3, 2),
            "e.lora_embedding_A": (2, 5), "e.lora_embedding_B": (4, 2),
        }
    )  # fmt: skip
    a, b = factor_mask(layout, Factor.A), factor_mask(layout, Factor.B)
    assert (a ^ b).all()
    moving = {key for key, part in layout.split(a.astype(np.float32)).items() if part.all()}
    assert moving == {"l.q.lora_A.weight", "e.lora_embedding_B"}  # those that start random


def test_an_adapter_without_both_factors_cannot_take_turns() -> None:
    only = AdapterLayout.of({"l.lora_A.weight": (1, DIM)}).json.decode()
    manifest = alternating().model_copy(update={"layout": only})
    with pytest.raises(ProtocolError, match="no factor B"):
        Factors(manifest)
    with pytest.raises(ProtocolError, match="no factor B"):
        ControllerCore(manifest, np.zeros(DIM, np.float32))


# ---- the boundary ------------------------------------------------------------------------------------------


def test_a_delta_is_zero_in_the_frozen_factor_and_what_it_leaves_behind_goes_with_the_next_phase() -> None:
    factors = Factors(alternating())
    ledger = Ledger(np.zeros(DIM, np.float32))
    mixed = np.random.default_rng(1).normal(
        0, 0.1, DIM
    )  # windows in which some updates were of the other phase
    ledger.add_window(window(0), mixed)
    theta = ledger.theta()
    first = ledger.seal(DeltaForm(DeltaCodec.INT16, ledger.anchor.size), factors.moving(0))
    value = decode(first.payload, first.exponent, first.codec)
    assert not value[A].any()
    assert np.abs(value[B] - mixed[B]).max() <= 2.0**first.exponent
    np.testing.assert_array_equal(ledger.remainder[A], mixed[A])
    np.testing.assert_array_equal(ledger.theta(), theta)  # nothing was lost, nothing counts twice
    ledger.adopt(1, value.astype(np.float32), merged=(0,), returned=(), dropped=())
    more = vector_of(2, 1)
    ledger.add_window(window(1), more)
    second = ledger.seal(DeltaForm(DeltaCodec.INT16, ledger.anchor.size), factors.moving(1))
    value = decode(second.payload, second.exponent, second.codec)
    assert not value[B].any()  # not even the residue of the first delta's rounding
    assert ledger.remainder[B].any()
    assert np.abs(value[A] - mixed[A] - more[A]).max() <= 2.0**second.exponent


def test_a_phase_in_which_nothing_moved_is_a_delta_of_zeros() -> None:
    ledger = Ledger(np.zeros(DIM, np.float32))
    ledger.add_window(window(0), vector_of(1, 1))
    sealed = ledger.seal(DeltaForm(DeltaCodec.INT16, ledger.anchor.size), Factors(alternating()).moving(0))
    assert not decode(sealed.payload, sealed.exponent, sealed.codec).any()


# ---- the exchange ------------------------------------------------------------------------------------------


def test_a_delta_that_moves_the_frozen_factor_is_refused() -> None:
    core = core_of(alternating())
    vector = vector_of(1, 0)
    vector[3] = 0.01
    assert core.offer(*make(0, 0, vector=vector), 1) is RefusalReason.BAD_PAYLOAD
    assert core.offer(*make(0, 1, vector=vector_of(1, 0)), 2) is None
    assert core.offer(*make(1, 0, vector=vector), 1) is RefusalReason.BAD_PAYLOAD
    assert core_of(terms()).offer(*make(0, 0, vector=vector), 1) is None  # where both move it may


@pytest.mark.parametrize("kind", list(OuterKind))
def test_in_even_commits_b_moves_and_in_odd_ones_a_alone(kind: OuterKind) -> None:
    """Bit for bit, with momentum as without: a frozen factor's momentum rests too."""
    core = core_of(alternating(kind))
    for number in range(6):
        before = core.adapter
        for boundary in range(2):
            delta, payload = make(
                boundary, number, base=number, vector=vector_of(100 * number + boundary, number)
            )
            assert core.offer(delta, payload, number) is None
        advance(core)
        frozen, moved = (A, B) if number % 2 == 0 else (B, A)
        assert core.adapter[frozen].tobytes() == before[frozen].tobytes()
        assert (core.adapter[moved] != before[moved]).all()


@pytest.mark.parametrize("kind", [OuterKind.NESTEROV, OuterKind.FEDADAM])
def test_each_factor_has_an_optimiser_that_knows_nothing_of_the_other(kind: OuterKind) -> None:
    """Its trajectory is that of a run of its own, with the other's commits left out."""
    both = core_of(alternating(kind))
    alone = core_of(terms(kind=kind))
    for number in range(6):
        vector = vector_of(number, number)
        for boundary in range(2):
            both.offer(*make(boundary, number, base=number, vector=vector), number)
        advance(both)
        if number % 2 == 0:
            for boundary in range(2):
                alone.offer(
                    *make(boundary, number // 2, base=number // 2, first=10 * number, vector=vector), number
                )
            advance(alone)
    assert both.adapter[B].tobytes() == alone.adapter[B].tobytes()
    assert both.adapter[A].any()


def test_a_late_delta_moves_its_own_factor_damped_while_the_fresh_one_moves_the_other() -> None:
    core = core_of(alternating())
    fresh, late = vector_of(1, 1), vector_of(2, 0)
    core.offer(*make(0, 0, base=0, vector=vector_of(3, 0)), 1)
    advance(core)
    before = core.adapter.copy()
    core.offer(*make(0, 1, base=1, vector=fresh), 2)
    core.offer(*make(1, 0, base=0, vector=late), 2)
    commit = advance(core)
    assert [(item.boundary, item.staleness) for item in commit.merged] == [(0, 0), (1, 1)]
    table = core.manifest.exchange.staleness
    damping = float(Fraction(table[1], table[0]))
    # lr 0.7; each factor has one of two deltas.
    np.testing.assert_allclose(core.adapter[A] - before[A], 0.7 * 0.5 * fresh[A], rtol=0, atol=1e-6)
    np.testing.assert_allclose(core.adapter[B] - before[B], 0.7 * 0.5 * damping * late[B], rtol=0, atol=1e-6)


def test_the_state_of_both_factors_survives_a_restart() -> None:
    manifest = alternating(OuterKind.NESTEROV)
    core = core_of(manifest)
    for number in range(3):
        core.offer(*make(0, number, base=number, vector=vector_of(number, number)), number)
        advance(core)
    again = ControllerCore.restore(manifest, core.snapshot(), transcript=deepcopy(core.transcript))
    assert again.snapshot() == core.snapshot()
    for each in (core, again):
        each.offer(*make(0, 3, base=3, vector=vector_of(3, 3)), 3)
    assert advance(core) == advance(again)
    optimiser = core._merging.optimiser
    state = optimiser.initial(DIM)
    with pytest.raises(CodecError):
        optimiser.decode(state.encode()[:-1], DIM)
    with pytest.raises(CodecError):
        optimiser.decode(b"x" + state.encode()[1:], DIM)
