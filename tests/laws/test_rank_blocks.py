"""Which rows are in which block, and what a window's sum is block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import CodecError, ProtocolError
from echelon.laws.cohort import close_window, context_of, limbs_of
from echelon.laws.rank_blocks import Places, block_sums, index_in, index_of, rank_of, reach_of
from echelon.laws.update_encoding import UpdateEncoder
from echelon.messages.adapter import AdapterLayout, rank_rows
from echelon.messages.boundary import Base, Cohort, Member
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import DeviceId
from echelon.secagg.partial_sums import RankSum
from echelon.secagg.ring import pack_vector
from echelon.secagg.unmasking import SumResult
from tests.worlds.boundary_world import manifest_for, names, roster_of

SHAPES = {
    "m.embed.lora_embedding_A": (4, 3),
    "m.embed.lora_embedding_B": (2, 4),
    "m.0.q.lora_A.weight": (4, 5),
    "m.0.q.lora_B.weight": (3, 4),
    "m.0.conv.lora_B.weight": (2, 4, 1, 1),
    "m.0.q.lora_magnitude_vector": (3,),
    "m.score.weight": (2, 6),
}


def test_rows_of_a_and_columns_of_b_are_told_and_what_has_no_rank_is_everybody_s() -> None:
    layout = AdapterLayout.of(SHAPES)
    rows = {key: view for key, view in layout.split(rank_rows(layout, 4).astype(np.float32)).items()}
    assert (rows["m.0.q.lora_A.weight"] == np.arange(4)[:, None]).all()
    assert (rows["m.0.q.lora_B.weight"] == np.arange(4)).all()
    assert (rows["m.embed.lora_embedding_A"] == np.arange(4)[:, None]).all()
    assert (rows["m.embed.lora_embedding_B"] == np.arange(4)).all()
    assert (rows["m.0.conv.lora_B.weight"] == np.arange(4)[:, None, None]).all()
    for key in ("m.0.q.lora_magnitude_vector", "m.score.weight"):
        assert not rows[key].any()


@given(st.sets(st.integers(1, 11), min_size=1, max_size=6))
def test_a_block_ends_where_the_manifest_says(ends: set[int]) -> None:
    blocks = (*sorted(ends), 12)
    layout = AdapterLayout.of({"l.lora_A.weight": (12, 2), "l.lora_B.weight": (3, 12)})
    index, rows = index_of(layout, blocks), rank_rows(layout, 12)
    for row, block in zip(rows.tolist(), index.tolist(), strict=True):
        assert (blocks[block - 1] if block else 0) <= row < blocks[block]
    places = Places(index, len(blocks))
    assert np.array_equal(sum(mask.astype(int) for block in places for mask in places[block]), np.ones(60))
    assert list(places) == list(range(len(places)))
    with pytest.raises(KeyError):
        places[len(blocks)]


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("experts.lora_A.weight", (8, 5)),  # two experts of rank 4 each
        ("experts.lora_B.weight", (5, 8)),
        ("flat.lora_A.weight", (4,)),
    ],
)
def test_a_layer_without_rows_of_that_rank_is_refused(key: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError, match=r"does not have the rank 4: such a layer has no rows"):
        rank_rows(AdapterLayout.of({key: shape}), 4)


# ---- sums ------------------------------------------------------------------------------------------

RANKS = (1, 2, 4)
LAYOUT = AdapterLayout.of({"l.lora_A.weight": (4, 3), "l.lora_B.weight": (3, 4)})
DIM = LAYOUT.dim


def terms(**secure: object) -> RunManifest:
    manifest = manifest_for(k_min=2)
    return manifest.model_copy(
        update={
            "rank_blocks": RANKS,
            "layout": LAYOUT.json.decode(),
            "secure": manifest.secure.model_copy(update=secure),
        }
    )


def cohort_of(n: list[int], manifest: RunManifest) -> Cohort:
    members = tuple(
        Member(
            device=device, offer=1, n=each, base_version=0, weight=manifest.secure.weight(each, 0), shards=(),
            edge="", jobs=(),
        )
        for device, each in zip(names(len(n)), n, strict=True)
    )  # fmt: skip
    return Cohort(
        window=0, version=0, commit=0, members=members, rejected=(), bases=(Base(version=0, sha256=bytes(32)),),
        threshold=len(n) // 2 + 1, inputs=0,
    )  # fmt: skip


def summed(
    vectors: list[np.ndarray], n: list[int], over: dict[int, RankSum], manifest: RunManifest
) -> tuple[np.ndarray, Cohort, object]:
    """The mean of a window of these updates, each weighted as its device would."""
    cohort, encoder = cohort_of(n, manifest), UpdateEncoder(manifest.secure)
    total: np.ndarray | None = None
    for vector, member in zip(vectors, cohort.members, strict=True):
        encoded = encoder.encode(vector, member.weight, b"s" * 32)
        packed = pack_vector(encoded.ring, (member.n, member.weight, encoded.norm2, 10, 0, 0, 0, 0))
        total = packed if total is None else total + packed
    assert total is not None
    assert total.size == DIM + limbs_of(manifest)
    devices = tuple(DeviceId(member.device) for member in cohort.members)
    result = SumResult(
        included=devices, total=total, uploads=dict.fromkeys(devices, bytes(32)), signatures={}, dropped=(),
        suspects=(), over=over,
    )  # fmt: skip
    summary, mean = close_window(cohort, result, manifest)
    return np.array(mean[:]), cohort, summary


def over_of(*counts: int, cap: int = 1 << 20) -> dict[int, RankSum]:
    """Of each block the last so many of six devices."""
    return {
        block: RankSum(frozenset(names(6)[6 - count :]), cap if count else 0)
        for block, count in enumerate(counts)
    }


def test_ranks_are_the_roster_s_and_a_context_needs_them() -> None:
    manifest, roster = terms(), roster_of(names(3), {"d0": 1, "d1": 2, "d2": 4})
    assert [rank_of(manifest, roster, f"d{place}") for place in range(3)] == [1, 2, 4]
    assert [reach_of(manifest, roster, f"d{place}") for place in range(3)] == [1, 2, 3]
    plain = manifest_for()
    assert (rank_of(plain, roster, "d0"), reach_of(plain, None, "d0")) == (0, 0)
    assert index_in(plain) is None
    with pytest.raises(ProtocolError, match="no roster says which"):
        context_of(cohort_of([1] * 3, manifest), manifest, DIM)
    context = context_of(cohort_of([1] * 3, manifest), manifest, DIM, roster)
    assert (context.rank_blocks, [member.reach for member in context.members]) == (3, [1, 2, 3])
    other = context_of(
        cohort_of([1] * 3, manifest), manifest, DIM, roster_of(names(3), {"d0": 1, "d1": 4, "d2": 4})
    )
    assert other.digest != context.digest


def test_a_block_s_sum_is_exact_and_over_its_own_devices() -> None:
    index, cohort = index_of(LAYOUT, RANKS), cohort_of([1, 2, 3, 4, 1, 2], terms())
    total = np.full(DIM, -(1 << 31) + 1, np.int32)
    sums = block_sums(total, index, included=cohort.members, over=over_of(6, 3, 0, cap=600))
    assert [(one.heads, one.n) for one in sums] == [(6, 13), (3, 7), (0, 0)]
    assert [one.weight for one in sums] == [256 + 512 + 600 + 600 + 256 + 512, 600 + 256 + 512, 0]
    assert [one.squared for one in sums] == [6 * ((1 << 31) - 1) ** 2, 6 * ((1 << 31) - 1) ** 2, 0]
