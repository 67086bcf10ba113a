"""From a cohort to its context, and from a sum to what the window contributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ProtocolError
from echelon.laws.cohort import Part, close_window, context_of, norm2_bound, threshold_of, vector_length
from echelon.messages.boundary import Base, Cohort, Member
from echelon.messages.exchange import DeltaCodec, Pace
from echelon.messages.manifest import (
    BoundaryTerms,
    Budget,
    ExchangeTerms,
    OuterKind,
    OuterTerms,
    RunManifest,
    SecureTerms,
    Weighting,
)
from echelon.messages.wire import DeviceId
from echelon.secagg.client import Client
from echelon.secagg.entropy import Entropy
from echelon.secagg.floors import (
    fewest_left,
    partial_sum_holds,
    partial_weight_holds,
    weight_cap,
    weight_holds,
)
from echelon.secagg.ring import Codec, pack_vector
from echelon.secagg.server import Server
from echelon.secagg.unmasking import SumResult
from tests.secagg.federation import digest_of, names, roster_of, signer_of

DIM = 50
BASES = (Base(version=6, sha256=b"6" * 32), Base(version=7, sha256=b"7" * 32))
SECURE = SecureTerms(
    k_min=2, colluding=0, cohort_max=8, clip_micro=1_000_000, scale_bits=24, bucket_tokens=100, n_max=50,
    staleness=(256, 181),
)  # fmt: skip


def manifest() -> RunManifest:
    terms = BoundaryTerms(
        name="ward", gate_public="11" * 32, enrolment_public="22" * 32, roster_sha256="33" * 32, slots=8
    )
    return RunManifest(
        run="ab" * 16, model="m", model_sha256="00" * 32, layout="{}", adapter_config="{}", secure=SECURE,
        exchange=ExchangeTerms(codec=DeltaCodec.INT16, staleness=(256,), deltas_per_commit=2, windows_max=4,
                               pending_max=2, report_loss=True),
        outer=OuterTerms(kind=OuterKind.AVERAGE, weighting=Weighting.EQUAL, lr_ppm=1_000_000, momentum_ppm=0,
                         beta2_ppm=0, epsilon_ppb=0),
        pace=Pace(steps=10, windows=2, mu_ppm=0), budget=Budget(commits=4, tokens=0, seconds=0, patience=0),
        boundaries=(terms,), controller_public="44" * 32, operator_public="55" * 32,
    )  # fmt: skip


def cohort(**changes: object) -> Cohort:
    members = tuple(
        Member(device=d, offer=1, n=10 + i, base_version=7 - i % 2, weight=(10 + i) * (181 if i % 2 else 256))
        for i, d in enumerate(names(4))
    )
    fields = {
        "window": 5, "version": 7, "commit": 2, "members": members, "rejected": (), "bases": BASES,
        "threshold": threshold_of(4, SECURE), "inputs": 9,
    }  # fmt: skip
    return Cohort(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_window_contributes_the_damped_mean_of_its_updates() -> None:
    run, decided = manifest(), cohort()
    context = context_of(decided, run, DIM)
    assert context.length == vector_length(DIM, run) == DIM + 32
    roster = roster_of(names(4))
    server = Server(context, roster)
    codec = Codec(1.0, SECURE.scale_bits, SECURE.cohort_max)
    clients = {d: Client(context, d, signer_of(d), roster, Entropy.seeded(d.encode())) for d in names(4)}
    updates = {
        d: np.random.default_rng(i).normal(0, 0.05, DIM).astype(np.float32) for i, d in enumerate(names(4))
    }
    for device, client in clients.items():
        server.on_advertise(device, client.advertise())
    keys = server.close_keys()
    for device, client in clients.items():
        server.on_sealed(device, client.share_keys(keys))
    shares, deliveries = server.close_shares()
    members = {member.device: member for member in decided.members}
    for device in names(4)[:3]:
        member = members[device]
        aux = (member.n, member.weight, 1000, 77, 5, 6, 7, 8)
        encoded = codec.encode(codec.clip(updates[device]), member.weight, SECURE.weight_max, bytes(32))
        masked = clients[device].masked_input(shares, deliveries[device], pack_vector(encoded, aux))
        server.on_masked(device, masked, digest_of(masked))
    included = server.close_masked()
    for device in names(4)[:3]:
        server.on_consistency(device, clients[device].consistency(included))
    signatures = server.close_consistency()
    for device in names(4)[:3]:
        server.on_unmask(device, clients[device].unmask(signatures))
    summary, mean = close_window(decided, server.finish(), run)
    kept = [members[d] for d in names(4)[:3]]
    assert (summary.window, summary.heads, summary.eval_commit) == (5, 3, 2)
    assert summary.n == 10 + 11 + 12
    assert summary.weight == sum(m.weight for m in kept)
    assert summary.weight2 == sum(m.weight**2 for m in kept)
    assert (summary.norm2, summary.tokens, summary.loss, summary.loss_tokens) == (3000, 231, 15, 18)
    assert (summary.eval_loss, summary.eval_tokens) == (21, 24)
    expected = sum(m.weight / 256 * updates[DeviceId(m.device)].astype(np.float64) for m in kept) / 33
    # each of three roundings is off by less than one unit of 2**-24, times W / (s(0) · Σn)
    np.testing.assert_allclose(mean[:], expected, atol=3 * SECURE.weight_max / (256 * 33) * 2.0**-24)


def outside(member: int, **changes: object) -> Callable[[Cohort], Cohort]:
    def change(decided: Cohort) -> Cohort:
        members = list(decided.members)
        members[member] = members[member].model_copy(update=changes)
        return decided.model_copy(update={"members": tuple(members)})

    return change


@pytest.mark.parametrize(
    ("match", "change"),
    [
        ("threshold 2, it must be 3", lambda c: c.model_copy(update={"threshold": 2})),
        ("threshold 4, it must be 3", lambda c: c.model_copy(update={"threshold": 4})),
        ("by table and cap it is 2560", outside(0, weight=2561)),
        ("outside the terms", outside(0, n=51, weight=51 * 256)),
        ("outside the terms", outside(0, n=0, weight=0)),
        ("outside the terms", outside(0, base_version=5)),
        ("outside the terms", outside(0, base_version=8)),
        ("not those that it is merged into", lambda c: c.model_copy(update={"bases": (*BASES, BASES[0])})),
        ("not those that it is merged into", lambda c: c.model_copy(update={"bases": BASES[1:]})),
        ("not those that it is merged into", lambda c: c.model_copy(update={"bases": BASES[::-1]})),
        ("devices, at most 8", lambda c: c.model_copy(update={"members": c.members * 3})),
        ("twice", lambda c: c.model_copy(update={"members": (c.members[0], c.members[0], *c.members[2:])})),
        (
            "by table and cap it is 0",
            lambda c: c.model_copy(update={"members": c.members[:1], "bases": BASES[1:], "threshold": 1}),
        ),
    ],
)
def test_a_cohort_outside_the_terms_is_refused(match: str, change: Callable[[Cohort], Cohort]) -> None:
    changed = change(cohort())
    if match == "outside the terms":
        versions = sorted({changed.version, *(member.base_version for member in changed.members)})
        bases = tuple(Base(version=version, sha256=bytes([version]) * 32) for version in versions)
        changed = changed.model_copy(update={"bases": bases})
    with pytest.raises(ProtocolError, match=match):
        context_of(changed, manifest(), DIM)


def test_the_context_binds_bases_and_terms() -> None:
    other = (BASES[0], Base(version=7, sha256=b"x" * 32))
    terms = manifest()
    looser = terms.model_copy(update={"secure": SECURE.model_copy(update={"bucket_tokens": 101})})
    digests = {
        context_of(cohort(), terms, DIM).digest,
        context_of(cohort(bases=other), terms, DIM).digest,
        context_of(cohort(), looser, DIM).digest,
        context_of(cohort(), terms, DIM + 1).digest,
    }
    assert len(digests) == 4


def result_of(*aux: int, devices: int = 4) -> SumResult:
    total = pack_vector(np.zeros(DIM, np.uint32), aux)
    included = tuple(names(4)[:devices])
    return SumResult(included, total, {d: d.encode().ljust(32) for d in included}, {}, (), ())


def sums(members: int = 4) -> tuple[int, int]:
    kept = cohort().members[:members]
    return sum(m.n for m in kept), sum(m.weight for m in kept)


def test_sums_that_are_not_the_cohorts_are_refused() -> None:
    n, weight = sums()
    close_window(cohort(), result_of(n, weight, 0, 0, 0, 0, 0, 0), manifest())
    for wrong in ((n + 1, weight), (n, weight - 1), sums(3)):
        with pytest.raises(ProtocolError, match="sums of n and w"):
            close_window(cohort(), result_of(*wrong, 0, 0, 0, 0, 0, 0), manifest())
    close_window(cohort(), result_of(*sums(3), 0, 0, 0, 0, 0, 0, devices=3), manifest())


def test_a_number_that_no_honest_devices_add_up_to_is_bounded_and_costs_no_window() -> None:
    n, weight = sums()
    result = result_of(n, weight, 2**63 - 1, 0, 0, 0, 0, 0)
    total = result.total.copy()
    total[DIM + 8] += 1  # the lowest limb of norm2
    summary, _ = close_window(cohort(), dataclasses.replace(result, total=total), manifest())
    assert summary.norm2 == norm2_bound([member.weight for member in cohort().members], SECURE)
    honest, _ = close_window(cohort(), result_of(n, weight, 5, 6, 7, 8, 9, 10), manifest())
    assert (honest.norm2, honest.tokens, honest.loss) == (5, 6, 7)
    assert (honest.loss_tokens, honest.eval_loss, honest.eval_tokens) == (8, 9, 10)


def test_parts_are_added_as_the_ring_adds() -> None:
    """2**31 - 1 and 1 are -2**31, whoever adds them up."""
    n, weight = sums()
    result = result_of(n, weight, 0, 0, 0, 0, 0, 0)
    total = result.total.copy()
    total[0] = (1 << 31) - 1
    part = np.zeros(DIM, np.int32)
    part[0] = 1
    edge = Part("e0", tuple(names(4)), 0, part, bytes(32))
    _, without = close_window(cohort(), dataclasses.replace(result, total=total), manifest())
    _, mean = close_window(cohort(), dataclasses.replace(result, total=total), manifest(), [edge])
    assert without[:1] > 0
    assert mean[:1] < 0


def test_the_root_covers_uploads_and_signatures() -> None:
    n, weight = sums()
    result = result_of(n, weight, 0, 0, 0, 0, 0, 0)
    others = [
        result,
        dataclasses.replace(result, signatures={DeviceId("d000"): b"s" * 64}),
        dataclasses.replace(result, uploads={**result.uploads, DeviceId("d000"): bytes(32)}),
    ]
    roots = {close_window(cohort(), other, manifest())[0].roster_root for other in others}
    roots.add(
        close_window(cohort(bases=(BASES[0], Base(version=7, sha256=b"x" * 32))), result, manifest())[
            0
        ].roster_root
    )
    assert len(roots) == 4


def hides(weights: list[int], k_min: int, colluding: int) -> bool:
    """By the definition: every device, among all others without the c largest of them."""
    return all(
        sum(weights) - sum(sorted((*weights[:i], *weights[i + 1 :]), reverse=True)[:colluding])
        >= k_min * weight
        for i, weight in enumerate(weights)
    )


@given(st.lists(st.integers(1, 1 << 10), min_size=1, max_size=24), st.integers(2, 8), st.integers(0, 5))
def test_the_weight_floor_is_that_of_its_definition(weights: list[int], k_min: int, colluding: int) -> None:
    assert weight_holds(weights, k_min, colluding) is hides(weights, k_min, colluding)


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=40), st.integers(2, 12), st.integers(0, 4))
def test_the_cap_is_the_largest_under_which_nobody_carries_more_than_its_share(
    weights: list[int], k_min: int, colluding: int
) -> None:
    cap = weight_cap(weights, k_min, colluding)
    if len(weights) < k_min + colluding:
        assert cap == 0
        return
    assert cap >= 1
    assert hides([min(weight, cap) for weight in weights], k_min, colluding)
    above = [min(weight, cap + 1) for weight in weights]
    assert cap == max(weights) or not hides(above, k_min, colluding)


def test_a_colluder_s_weight_hides_nobody() -> None:
    """k_min = 2, c = 1: the two heavy ones are the victim and a colluder, the third is nearly nothing."""
    weights = [1000, 1000, 60]
    assert sum(weights) >= 2 * max(
        weights
    )  # the floor without colluders let this pass: within 6 % of the victim's
    assert not weight_holds(weights, 2, 1)
    assert weight_cap(weights, 2, 1) == 60


@given(
    st.integers(2, 6),
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 40),
    st.data(),
)
def test_a_sum_of_some_holds_the_floor_whoever_drops_out(
    k_min: int, colluding: int, adding: int, others: int, threshold: int, data: st.DataObject
) -> None:
    uploading = adding + others
    lost = uploading - fewest_left(uploading, threshold, k_min, colluding)
    holds = partial_sum_holds(adding, lost, k_min, colluding)
    gone = data.draw(st.integers(0, lost))  # of those who drop out, so many were adding
    if holds:
        assert adding - min(gone, adding) >= k_min + colluding


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.integers(0, 3),
    st.integers(2, 4),
    st.integers(0, 2),
)
def test_the_weight_of_a_sum_of_some_holds_the_floor_whoever_drops_out(
    weights: list[int], lost: int, k_min: int, colluding: int
) -> None:
    """The rule is that of its definition: every set of those who may drop out leaves a sum that holds the floor."""
    left = [
        [weight for place, weight in enumerate(weights) if place not in gone]
        for count in range(min(lost, len(weights)) + 1)
        for gone in combinations(range(len(weights)), count)
    ]
    assert partial_weight_holds(weights, lost, k_min, colluding) == all(
        weight_holds(one, k_min, colluding) for one in left
    )


def test_a_device_that_trained_much_more_is_capped_and_not_left_to_block_its_boundary() -> None:
    run = manifest()
    names_ = names(4)
    whole = (40 * 256, 10 * 256, 10 * 256, 10 * 256)
    cap = weight_cap(whole, run.secure.k_min, run.secure.colluding)
    members = tuple(
        Member(device=d, offer=1, n=n, base_version=7, weight=min(n * 256, cap))
        for d, n in zip(names_, (40, 10, 10, 10), strict=True)
    )
    context = context_of(cohort(members=members, bases=BASES[1:]), run, DIM)
    assert max(context.weights.values()) < 40 * 256
    for other in (
        cap + 1,
        cap - 1,
        1,
    ):  # a cap of the aggregator's choice, as if the cohort had weights of its own
        lied = tuple(m.model_copy(update={"weight": min(m.n * 256, other)}) for m in members)
        with pytest.raises(ProtocolError, match="by table and cap"):
            context_of(cohort(members=lied, bases=BASES[1:]), run, DIM)
