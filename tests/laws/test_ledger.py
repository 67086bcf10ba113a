from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ProtocolError
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger, StoredLedger, WindowMean, window_mean
from echelon.laws.snapshot import decode as decode_snapshot
from echelon.laws.snapshot import encode, parts_of
from echelon.messages.exchange import MAX_WINDOWS, DeltaCodec
from echelon.messages.manifest import SecureTerms
from tests.audit.synthetic import terms, window
from tests.memory import traced

DIM = 6


def secure(*, staleness: tuple[int, ...] = (256, 128), n_max: int = 4, scale_bits: int = 10) -> SecureTerms:
    return SecureTerms(
        k_min=2, colluding=0, cohort_max=8, clip_micro=1_000_000, scale_bits=scale_bits, bucket_tokens=1024,
        n_max=n_max, staleness=staleness,
    )  # fmt: skip


# ---- the mean -----------------------------------------------------------------------------------------


def carried(updates: list[float], n: list[int], tau: list[int], terms: SecureTerms) -> np.ndarray:
    """The integer sum that devices with these updates make: round(w / W · Δ · 2**scale_bits), without noise."""
    total = 0.0
    for update, count, age in zip(updates, n, tau, strict=True):
        total += terms.weight(count, age) / terms.weight_max * update * (1 << terms.scale_bits)
    assert total == int(total)
    return np.array([int(total)], np.int64)


def test_the_mean_of_fresh_updates_is_weighted_by_n() -> None:
    terms = secure()
    total = carried([1.0, 2.0], [1, 3], [0, 0], terms)
    assert window_mean(total, 4, terms) == pytest.approx((1.0 * 1 + 2.0 * 3) / 4, rel=1e-15)


def test_damping_is_not_cancelled_when_all_are_equally_late() -> None:
    terms = secure()  # s(1) / s(0) is one half
    late = window_mean(carried([1.0, 2.0], [1, 3], [1, 1], terms), 4, terms)
    fresh = window_mean(carried([1.0, 2.0], [1, 3], [0, 0], terms), 4, terms)
    assert late == pytest.approx(fresh / 2, rel=1e-15)
    assert late == pytest.approx(0.875)


def test_one_late_update_among_fresh_ones() -> None:
    terms = secure()
    # (2·1·1 + 2·½·4) / (2 + 2)
    assert window_mean(carried([1.0, 4.0], [2, 2], [0, 1], terms), 4, terms) == pytest.approx(1.5, rel=1e-15)


def test_the_unit_of_the_table_and_the_scale_cancel() -> None:
    for unit in (16, 256):
        for bits in (8, 20):
            terms = secure(staleness=(unit, unit // 2), scale_bits=bits)
            total = carried([1.0, 4.0], [2, 2], [0, 1], terms)
            assert window_mean(total, 4, terms) == pytest.approx(1.5, rel=1e-15)


@pytest.mark.parametrize("n", [0, -1])
def test_a_window_of_nothing_has_no_mean(n: int) -> None:
    with pytest.raises(ProtocolError, match="trained nothing"):
        window_mean(np.zeros(3, np.int64), n, secure())


# ---- every window counts once or never -----------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    verbs = st.sampled_from(["window", "window", "window", "seal", "adopt"])
    return draw(st.lists(st.tuples(verbs, st.integers(0, 2**16)), min_size=1, max_size=40))


class Book:
    """The same history, kept as sets of window numbers and exact fractions."""

    def __init__(self) -> None:
        self.means: dict[int, np.ndarray] = {}
        self.remainder: set[int] = set()
        self.pending: dict[int, set[int]] = {}
        self.merged: set[int] = set()
        self.dropped: set[int] = set()


def exact(vector: np.ndarray) -> list[Fraction]:
    return [Fraction(float(value)) for value in vector]


@pytest.mark.slow
@given(histories(), st.sampled_from(list(DeltaCodec)), st.integers(0, 2**32 - 1))
def test_every_window_stands_in_exactly_one_place_and_nothing_of_it_is_lost(
    history: list[tuple[str, int]], codec: DeltaCodec, seed: int
) -> None:
    form = DeltaForm(codec, DIM, 300_000 if codec is DeltaCodec.SPARSE else 0)
    random = np.random.default_rng(seed)
    ledger, book = Ledger(np.zeros(DIM, np.float32)), Book()
    accounted = [Fraction(0)] * DIM  # Σ means that came in, minus Σ values that left for good
    scale = Fraction(0)  # bound of what float64 additions may have rounded away
    commits = 0

    def rounding(*vectors: np.ndarray) -> Fraction:
        return sum((Fraction(float(np.abs(v).max(initial=0.0))) for v in vectors), Fraction(0)) / 2**52

    for number, (verb, choice) in enumerate(history):
        if verb == "window":
            mean = random.normal(0, 10.0 ** random.integers(-4, 3), DIM)
            if len(ledger.windows) >= MAX_WINDOWS:
                with pytest.raises(ProtocolError, match="the most that one delta can carry"):
                    ledger.add_window(window(number), mean)
                continue
            ledger.add_window(window(number), mean)
            book.means[number] = mean
            book.remainder.add(number)
            accounted = [a + b for a, b in zip(accounted, exact(mean), strict=True)]
            scale += rounding(ledger.remainder, mean)
        elif verb == "seal":
            if not book.remainder:
                with pytest.raises(ProtocolError, match="nothing to seal"):
                    ledger.seal(form)
                continue
            before = ledger.remainder.copy()
            sealed = ledger.seal(form)
            assert sealed.base_commit == commits
            assert {summary.window for summary in sealed.windows} == book.remainder
            value = form.decode(sealed.payload, sealed.exponent)
            assert np.array_equal(value, ledger.pending[sealed.seq].value)
            # Subtracting a rounded value from what it was rounded from is off by at most half an ulp of r.
            gap = [
                a - b - c
                for a, b, c in zip(exact(before), exact(value), exact(ledger.remainder), strict=True)
            ]
            assert max(map(abs, gap)) <= rounding(before, value)
            scale += rounding(before, value)
            book.pending[sealed.seq], book.remainder = book.remainder, set()
        else:
            fates = {seq: (choice >> 2 * place) % 4 for place, seq in enumerate(sorted(book.pending))}
            chosen = {fate: tuple(seq for seq, given in fates.items() if given == fate) for fate in range(4)}
            back = len(book.remainder) + sum(len(book.pending[seq]) for seq in chosen[2])
            if back > MAX_WINDOWS:
                continue  # the aggregator pauses long before (see its tests)
            for seq in (*chosen[1], *chosen[3]):
                accounted = [a - b for a, b in zip(accounted, exact(ledger.pending[seq].value), strict=True)]
            commits += 1
            anchor = random.normal(0, 1, DIM).astype(np.float32)
            scale += rounding(ledger.remainder, *(ledger.pending[seq].value for seq in chosen[2])) * 4
            ledger.adopt(commits, anchor, merged=chosen[1], returned=chosen[2], dropped=chosen[3])
            for seq in chosen[1]:
                book.merged |= book.pending.pop(seq)
            for seq in chosen[2]:
                book.remainder |= book.pending.pop(seq)
            for seq in chosen[3]:
                book.dropped |= book.pending.pop(seq)
            assert np.array_equal(ledger.anchor, anchor)
        # By number: every window is in one place, and the ledger says the same as the book.
        assert {summary.window for summary in ledger.windows} == book.remainder
        assert len(ledger.windows) == len(book.remainder)
        assert {seq: {w.window for w in d.windows} for seq, d in ledger.pending.items()} == book.pending
        places = [book.remainder, *book.pending.values(), book.merged, book.dropped]
        assert sum(map(len, places)) == len(book.means)
        # By value: what came in is what is still here, plus what left.
        held = [ledger.remainder, *(delta.value for delta in ledger.pending.values())]
        for coordinate in range(DIM):
            here = sum((Fraction(float(vector[coordinate])) for vector in held), Fraction(0))
            assert abs(here - accounted[coordinate]) <= scale
        total = ledger.anchor.astype(np.float64)
        for vector in [*(ledger.pending[seq].value for seq in sorted(ledger.pending)), ledger.remainder]:
            total = total + vector
        assert np.array_equal(ledger.theta(), total.astype(np.float32))


def test_a_returned_delta_is_in_the_next_one_with_its_residue() -> None:
    ledger = Ledger(np.zeros(DIM, np.float32))
    mean = np.linspace(-1, 1, DIM)
    ledger.add_window(window(0), mean)
    first = ledger.seal(DeltaForm(DeltaCodec.INT16, DIM))
    residue = ledger.remainder.copy()
    assert residue.any()
    ledger.adopt(1, ledger.anchor, merged=(), returned=(first.seq,), dropped=())
    assert np.allclose(ledger.remainder, mean, rtol=0, atol=2**-52)
    ledger.add_window(window(1), mean)
    second = ledger.seal(DeltaForm(DeltaCodec.INT16, DIM))
    assert second.seq == 1
    assert [summary.window for summary in second.windows] == [0, 1]
    assert np.allclose(
        DeltaForm(second.codec, DIM).decode(second.payload, second.exponent), 2 * mean, atol=1e-4
    )


def test_a_dropped_delta_vanishes_and_its_residue_stays() -> None:
    ledger = Ledger(np.zeros(DIM, np.float32))
    ledger.add_window(window(0), np.linspace(-1, 1, DIM))
    ledger.seal(DeltaForm(DeltaCodec.INT16, DIM))
    residue = ledger.remainder.copy()
    ledger.adopt(0, ledger.anchor, merged=(), returned=(), dropped=(0,))
    assert ledger.pending == {}
    assert ledger.windows == ()
    assert np.array_equal(ledger.theta(), residue.astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merged": (3,)}, "decides deltas"),
        ({"returned": (1,)}, "decides deltas"),
        ({"merged": (0,), "dropped": (0,)}, "decides deltas"),
        ({"merged": (0, 0)}, "decides deltas"),
        ({"commit": 1}, "older than"),
        ({"adapter": np.zeros(DIM + 1, np.float32)}, "coordinates"),
    ],
)
def test_a_commit_that_cannot_be_changes_nothing(fields: dict[str, object], message: str) -> None:
    ledger = Ledger(np.zeros(DIM, np.float32))
    ledger.adopt(2, np.ones(DIM, np.float32), merged=(), returned=(), dropped=())
    ledger.add_window(window(0), np.ones(DIM))
    ledger.seal(DeltaForm(DeltaCodec.INT32, DIM))
    before = ledger.theta()
    asked: dict[str, object] = {
        "commit": 3, "adapter": np.zeros(DIM, np.float32), "merged": (), "returned": (), "dropped": (),
    }  # fmt: skip
    asked |= fields
    with pytest.raises(ProtocolError, match=message):
        ledger.adopt(asked.pop("commit"), asked.pop("adapter"), **asked)  # type: ignore[arg-type]
    assert list(ledger.pending) == [0]
    assert ledger.commit == 2
    assert np.array_equal(ledger.theta(), before)


def test_a_window_counts_once() -> None:
    ledger = Ledger(np.zeros(DIM, np.float32))
    ledger.add_window(window(7), np.ones(DIM))
    with pytest.raises(ProtocolError, match="window 7 is in the remainder already"):
        ledger.add_window(window(7), np.ones(DIM))
    assert np.array_equal(ledger.theta(), np.ones(DIM, np.float32))


def test_a_step_makes_no_vector_of_float64() -> None:
    """A window's mean and a delta's value are computed a part at a time; what a delta holds is its integers."""
    size = 1 << 20
    ledger = Ledger(np.zeros(size, np.float32))
    total = np.arange(size, dtype=np.int32)
    with traced() as peak:
        ledger.add_window(window(0), WindowMean(total, 4, secure()))
        ledger.seal(DeltaForm(DeltaCodec.INT16, size))
        assert (
            peak() < 1.5 * 4 * size
        )  # the integers as an array and as bytes: together one vector of float32
    with traced() as peak:
        ledger.adopt(1, ledger.anchor, merged=(), returned=(0,), dropped=())
        assert peak() < 4 * size


def test_a_mean_in_parts_is_that_of_the_whole_vector() -> None:
    total = np.random.default_rng(3).integers(-(2**31), 2**31, 1000).astype(np.int32)
    for shorter in (1.0, 0.3):
        whole = window_mean(total.astype(np.int64), 7, secure()) * shorter
        mean = WindowMean(total, 7, secure(), shorter)
        assert np.array_equal(np.concatenate([mean[:300], mean[300:]]), whole)


def test_a_pending_delta_is_stored_without_its_value_and_comes_back_as_it_was() -> None:
    size = 1 << 20
    ledger = Ledger(np.zeros(size, np.float32))
    ledger.add_window(window(0), WindowMean(np.arange(size, dtype=np.int32), 4, secure()))
    ledger.seal(DeltaForm(DeltaCodec.INT16, size))
    with traced() as peak:
        assert sum(len(part) for part in parts_of(ledger.facts())) > 2 * 8 * size
        assert peak() < 4 * size
    written = encode(ledger.facts())
    again = Ledger.of(ledger.anchor, decode_snapshot(written, StoredLedger))
    assert encode(again.facts()) == written
    assert np.array_equal(again.theta(), ledger.theta())
    again.adopt(
        1, ledger.anchor, merged=(), returned=(0,), dropped=()
    )  # what was read is not changed in place
    assert decode_snapshot(written, StoredLedger).remainder[1] == ledger.remainder[1]


@pytest.mark.parametrize("ppm", [525_000, 1_000_000, 1_400_000])
def test_an_eager_step_is_what_is_trained_from_and_nothing_else(ppm: int) -> None:
    """κ scales undecided deltas in θ; what is sealed, returned and kept is the same to the bit."""
    exchange = terms().exchange.model_copy(update={"eager_ppm": ppm})
    form, random = DeltaForm(DeltaCodec.INT16, DIM, 0), np.random.default_rng(5)
    eager, plain = (Ledger(np.ones(DIM, np.float32)) for _ in range(2))
    for number in range(4):
        mean = random.normal(size=DIM)
        for ledger in (eager, plain):
            ledger.add_window(window(number), mean)
            if number < 3:
                ledger.seal(form)
    for ledger in (eager, plain):
        ledger.adopt(1, np.full(DIM, 2.0, np.float32), merged=(0,), returned=(1,), dropped=())
    assert eager.pending[2].value.tobytes() == plain.pending[2].value.tobytes()
    assert eager.remainder.tobytes() == plain.remainder.tobytes()
    expected = 2.0 + ppm / 1e6 * eager.pending[2].value + eager.remainder
    assert np.array_equal(eager.theta(exchange), expected.astype(np.float32))
    assert np.array_equal(plain.theta(), (2.0 + plain.pending[2].value + plain.remainder).astype(np.float32))
    assert np.array_equal(eager.theta(exchange), plain.theta()) is (ppm == 1_000_000)
