from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.elsa.predictions import quantise
from echelon.elsa.trust import (
    PPM,
    Standing,
    TrustEvidence,
    TrustRule,
    TrustVerdict,
    admit,
    judge,
    score,
    update,
)
from echelon.errors import CodecError, ProtocolError
from echelon.messages.adapter import F64
from echelon.messages.behaviour import Counts

ROWS, CLASSES = 96, 32


@dataclass
class Boundary:
    """Devices whose predictions start from one model's and drift with training: logits, float64[rows, classes]."""

    seed: int
    honest: int = 9
    draw: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)
        self.base = 2.0 * self.draw.normal(size=(ROWS, CLASSES))
        self.common = self.draw.normal(size=(ROWS, CLASSES))
        self.own = {f"d{number}": self.draw.normal(size=(ROWS, CLASSES)) for number in range(self.honest)}
        self.unusual = self.draw.normal(size=(ROWS, CLASSES))
        self.shuffled = self.draw.permutation(self.base.ravel()).reshape(ROWS, CLASSES)
        self.first: Counts | None = None

    def records(self, number: int, *bad: str) -> dict[str, Counts]:
        shared = self.base + 0.05 * number * self.common

        def noisy(logits: F64, much: float = 0.08) -> Counts:
            return softmax(logits + much * self.draw.normal(size=logits.shape))

        found = {name: noisy(shared + 0.15 * own) for name, own in self.own.items()}
        found["unusual"] = noisy(shared + 0.45 * self.unusual)
        if self.first is None:
            self.first = noisy(shared + 0.15 * self.own["d0"])
        kinds = {
            "shuffled": lambda: noisy(self.shuffled),
            "random": lambda: softmax(shared + 2.0 * self.draw.normal(size=shared.shape)),
            "stale": lambda: self.first,
        }
        return found | {kind: kinds[kind]() for kind in bad}  # type: ignore[dict-item]


def softmax(logits: F64) -> Counts:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return quantise(powers / powers.sum(axis=1, keepdims=True))


def verdicts(boundary: Boundary, rounds: int, *bad: str) -> list[dict[str, TrustVerdict]]:
    standing: dict[str, Standing] = {}
    past: dict[str, Counts] = {}
    found = []
    for number in range(rounds):
        now = boundary.records(number, *bad)
        standing, _ = judge(now, past, dict.fromkeys(now, 0), standing)
        past = now
        found.append({name: admit(standing[name]) for name in now})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reasons", "by"),
    [
        ("shuffled", {TrustVerdict.INCONSISTENT}, 0),
        ("random", {TrustVerdict.INCONSISTENT, TrustVerdict.ERRATIC}, 0),
        ("stale", {TrustVerdict.STALE}, 2),
    ],
)
def test_a_faulty_device_is_kept_out_with_its_reason(kind: str, reasons: set[TrustVerdict], by: int) -> None:
    caught = 0
    for seed in range(20):
        rounds = verdicts(Boundary(seed), 5, kind)
        caught += all(found[kind] in reasons for found in rounds[by:])
    assert caught == 20


@pytest.mark.slow
def test_honest_devices_are_not_thrown_out_whatever_their_data() -> None:
    false = total = 0
    for seed in range(30):
        for bad in ((), ("shuffled",), ("random", "stale")):
            for found in verdicts(Boundary(seed), 4, *bad):
                honest = [verdict for name, verdict in found.items() if name not in bad]
                total += len(honest)
                false += sum(not verdict.admitted for verdict in honest)
    assert total == 30 * 3 * 4 * 10
    assert false / total <= 0.001


def test_a_fifth_of_faulty_devices_in_a_cluster_of_their_own_do_not_vouch_for_each_other() -> None:
    boundary = Boundary(1)
    now = boundary.records(0)
    now |= {f"s{number}": softmax(boundary.shuffled + 0.05 * number) for number in range(3)}
    labels = {name: int(name.startswith("s")) for name in now}
    standing, _ = judge(now, {}, labels, {})
    assert {name for name in now if not admit(standing[name]).admitted} == {"s0", "s1", "s2"}


def test_a_large_cluster_is_judged_by_its_own_consensus() -> None:
    boundary = Boundary(2, honest=6)
    own = {name: counts for name, counts in boundary.records(0).items() if name != "unusual"}
    other = {
        f"o{number}": softmax(boundary.shuffled + 0.15 * boundary.draw.normal(size=(ROWS, CLASSES)))
        for number in range(6)
    }
    now = own | other
    together, _ = judge(now, {}, {name: int(name.startswith("o")) for name in now}, {})
    assert all(admit(standing).admitted for standing in together.values())


def test_a_device_that_recovers_comes_back_only_over_the_higher_threshold() -> None:
    rule = TrustRule()
    bad, good = TrustEvidence(20_000, 0, still=False), TrustEvidence(0, 0, still=False)
    standing = Standing()
    for _ in range(3):
        standing = update(standing, good, rule)
    assert standing.trust == PPM
    standing = update(standing, bad, rule)
    assert admit(standing, rule).admitted  # one bad record is forgiven
    standing = update(standing, bad, rule)
    assert admit(standing, rule) is TrustVerdict.INCONSISTENT
    between = update(standing, TrustEvidence(6_600, 0, still=False), rule)
    assert rule.low <= between.trust + 50_000
    assert not admit(between, rule).admitted
    again = update(update(between, good, rule), good, rule)
    assert again.trust > rule.high
    assert admit(again, rule).admitted


def test_between_the_thresholds_a_device_stays_what_it_was() -> None:
    rule = TrustRule(half=256)
    middle = TrustEvidence(7_000, 0, still=False)  # a score of one half
    assert score(middle, rule) == PPM // 2
    assert admit(update(Standing(trust=PPM, records=3), middle, rule), rule).admitted
    assert not admit(update(Standing(trust=0, records=3, out=True), middle, rule), rule).admitted


def test_a_newcomer_has_no_credit() -> None:
    assert admit(None) is TrustVerdict.NO_RECORD
    assert admit(Standing()) is TrustVerdict.NO_RECORD
    assert admit(update(Standing(), TrustEvidence(20_000, 0, still=False))) is TrustVerdict.INCONSISTENT
    assert admit(update(Standing(), TrustEvidence(0, 20_000, still=False))) is TrustVerdict.ERRATIC


def test_being_close_is_no_fault() -> None:
    assert score(TrustEvidence(-50_000, -50_000, still=False), TrustRule()) == PPM


def test_devices_alone_have_nothing_to_be_compared_with() -> None:
    one = softmax(np.zeros((ROWS, CLASSES)))
    standing, seen = judge({"a": one}, {"a": one}, {"a": 0}, {})
    assert seen["a"] == TrustEvidence(0, 0, still=False)
    assert admit(standing["a"]).admitted


def test_a_whole_boundary_at_rest_is_not_stale() -> None:
    boundary = Boundary(4)
    now = boundary.records(0)
    standing: dict[str, Standing] = {}
    for _ in range(4):
        standing, _ = judge(now, now, dict.fromkeys(now, 0), standing)
    assert all(admit(found).admitted for found in standing.values())


def test_judging_does_not_depend_on_the_order_of_maps_and_keeps_the_absent() -> None:
    now = Boundary(5).records(0, "shuffled")
    labels = dict.fromkeys(now, 0)
    away = Standing(trust=123_456, records=7, out=True)
    one = judge(now, {}, labels, {"away": away})
    two = judge(dict(reversed(now.items())), {}, dict(reversed(labels.items())), {"away": away})
    assert one == two
    assert one[0]["away"] == away
    with pytest.raises(ProtocolError, match="no cluster"):
        judge(now, {}, {}, {})


counts = st.integers(0, 2**31)
deviations = st.integers(-(10**9), 10**9)


@given(st.integers(0, PPM), counts, st.booleans(), deviations, deviations)
def test_a_standing_comes_back_exactly(trust: int, records: int, out: bool, apart: int, moved: int) -> None:
    standing = Standing(trust, records, min(2, records), out, apart, moved)
    assert Standing.decode(standing.encode()) == standing


@given(st.integers(0, PPM), counts, st.booleans(), deviations, deviations, st.booleans())
def test_recorded_integers_take_the_same_decision_again(
    trust: int, records: int, out: bool, apart: int, moved: int, still: bool
) -> None:
    before = Standing(trust, records, 0, out)
    after = update(before, TrustEvidence(apart, moved, still))
    assert 0 <= after.trust <= PPM
    replayed = update(Standing.decode(before.encode()), TrustEvidence(apart, moved, still))
    assert replayed.encode() == after.encode()
    assert admit(replayed) is admit(after)


@pytest.mark.parametrize(
    "fields", [[1, 2, 3], [PPM + 1, 0, 0, 0, 0, 0], [0, 0, 0, 2, 0, 0], [0, 1, 2, 0, 0, 0], "text"]
)
def test_bytes_that_are_no_standing_are_refused(fields: object) -> None:
    from echelon.messages.wire import pack

    with pytest.raises(CodecError):
        Standing.decode(pack(fields))


@pytest.mark.parametrize(
    "wrong", [{"fine": 9.0}, {"low": 700_000}, {"half": 0}, {"patience": 0}, {"still": 1.0}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ProtocolError):
        TrustRule(**wrong)  # type: ignore[arg-type]
