"""Ranks of devices: what a run file may say, and what stands on rosters."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from echelon.config.run import RunSettings, dump, parse
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout
from echelon.preflight.check import check
from echelon.provision.identities import Identities
from echelon.provision.manifest_from_settings import secure_terms
from echelon.provision.ranks import check_rank_terms, fewest_training
from echelon.secagg.entropy import Entropy
from tests.laws.test_rank_blocks import LAYOUT, terms
from tests.run.runs import federation


def ranked(*ranks: int | None, **changes: Any) -> RunSettings:
    devices = [
        {"id": f"a-{place}", **({} if rank is None else {"rank": rank})} for place, rank in enumerate(ranks)
    ]
    fields: dict[str, Any] = {
        "boundaries": [{"name": "a", "devices": devices, "data": {"source": "text:unused"}}],
        "adapter": {"rank": 4, "rank_blocks": [1, 2, 4]},
        "secure": {"k_min": 2},
    }
    return federation(**fields | changes)


def test_devices_are_enrolled_with_their_ranks_and_without_one_with_the_adapter_s() -> None:
    made = ranked(1, 2, None, 4, None)
    roster = Identities.create(made, Entropy.seeded(b"x").token).boundaries["a"].roster
    assert [entry.rank for entry in roster.entries] == [1, 2, 4, 4, 4]
    plain = federation()
    for keys in Identities.create(plain, Entropy.seeded(b"x").token).boundaries.values():
        assert {entry.rank for entry in keys.roster.entries} == {0}
        assert b"rank" not in keys.roster.encode()


@pytest.mark.parametrize(
    ("ranks", "changes", "words"),
    [
        ((1, 3, 4, 4), {}, "device 'a-1' has rank 3, and adapter.rank_blocks is [1, 2, 4]: name it there"),
        ((1, 4, 4, 4), {"adapter": {"rank": 4}}, "device 'a-0' has a rank of its own, and adapter.rank_blocks"),
        ((1,), {"adapter": {"rank": 4, "rank_blocks": [4]}}, "rank_blocks [4] must be two ranks at least"),
        ((1,), {"adapter": {"rank": 4, "rank_blocks": [2, 1, 4]}}, "must be two ranks at least, ascend"),
        ((1,), {"adapter": {"rank": 8, "rank_blocks": [2, 4]}}, "and end with rank = 8"),
        ((1,), {"adapter": {"rank": 4, "rank_blocks": [2, 4], "kind": "fed-sb"}}, "kind fed-sb trains cores"),
        ((1,), {"adapter": {"rank": 4, "rank_blocks": [2, 4], "kind": "ravan"}}, "kind ravan trains cores"),
        ((1,), {"adapter": {"rank": 4, "rank_blocks": [2, 4], "kind": "fedsa"}}, "kind fedsa keeps B on the device"),
        ((4, 4, 4, 4), {"sync": {"pace": {"kind": "echelon-da"}}}, "echelon-da measures how much of a window"),
    ],
)  # fmt: skip
def test_what_a_run_file_must_not_say(ranks: tuple[int, ...], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        ranked(*ranks, **changes)


def test_split_training_has_blocks_already() -> None:
    split = {"edges": 1, "front": 1, "back": 1}
    devices = [{"id": f"a-{place}"} for place in range(4)]
    with pytest.raises(ConfigError, match="whose blocks are sums of their own already"):
        ranked(
            boundaries=[{"name": "a", "devices": devices, "data": {"source": "text:x"}, "split": split}],
            learner={"kind": "quadratic", "dim": 24, "blocks": 4},
        )


@pytest.mark.parametrize("ranks", [(1, 2, 4, 4, 4, 4), (2, 2, 4, 4, 4, 4), (4,) * 6, (2, 2, 2, 4, 4, 4)])
def test_enough_devices_of_a_rank_are_taken(ranks: tuple[int, ...]) -> None:
    secure_terms(ranked(*ranks))


def test_rows_that_could_never_be_trained_are_told_before_anything_starts() -> None:
    words = (
        "boundary 'a' has 2 of 6 devices of rank 4 or more, and 3 are needed: the sum of rows 2 to 3 is over those "
        "alone, and with fewer it would not hide one of them once some drop out. Give more devices rank 4, or none"
    )
    made = ranked(1, 1, 2, 2, 4, 4)
    with pytest.raises(ConfigError, match=re.escape(words)):
        secure_terms(made)
    assert [re.search(re.escape(words), fault.message) is not None for fault in check(made).faults] == [True]


def test_rows_that_no_device_of_the_run_trains_are_told() -> None:
    with pytest.raises(ConfigError, match=r"no device has rank 4, the last of adapter\.rank_blocks"):
        secure_terms(ranked(1, 2, 2, 2))


def test_services_of_a_boundary_of_low_ranks_read_their_own_part_of_the_run_file() -> None:
    """Whether the others train the upper rows is known where the run is provisioned, and not here."""
    part = ranked(1, 2, 2, 2)
    again = parse(yaml.safe_load(dump(part)), "run.yaml")
    assert [device.rank for device in again.boundaries[0].device_list()] == [1, 2, 2, 2]


def test_a_boundary_without_devices_of_a_rank_is_none_that_has_too_few() -> None:
    made = federation(
        boundaries=[
            {"name": name, "devices": [{"id": f"{name}-{i}", "rank": rank} for i in range(4)],
             "data": {"source": "text:unused"}}
            for name, rank in (("a", 1), ("b", 4))
        ],
        adapter={"rank": 4, "rank_blocks": [1, 4]},
    )  # fmt: skip
    secure_terms(made)


@pytest.mark.parametrize(
    ("count", "k_min", "colluding", "degree", "needed"),
    [
        (6, 2, 0, 0, 3), (8, 2, 0, 0, 4), (8, 3, 0, 0, 5), (8, 3, 1, 0, 7), (40, 3, 0, 0, 6), (40, 3, 0, 8, 4),
        (4, 4, 0, 0, 4),
    ],
)  # fmt: skip
def test_fewest_devices_of_a_rank(count: int, k_min: int, colluding: int, degree: int, needed: int) -> None:
    secure = terms(k_min=k_min, colluding=colluding, cohort_max=64, neighbours=degree).secure
    assert fewest_training(count, secure) == needed


def test_a_roster_with_other_ranks_than_the_run_file_is_no_roster_of_it() -> None:
    made = ranked(1, 2, 4, 4, 4, 4)
    identities = Identities.create(made, Entropy.seeded(b"x").token)
    manifest = terms()
    check_rank_terms(made, manifest, identities)
    with pytest.raises(
        ConfigError, match="gives 'a-0' the rank 1, and the run file 2: make keys and rosters anew"
    ):
        check_rank_terms(ranked(2, 2, 4, 4, 4, 4), manifest, identities)


def test_layers_without_rows_of_the_rank_are_named() -> None:
    made = ranked(1, 2, 4, 4, 4, 4)
    identities = Identities.create(made, Entropy.seeded(b"x").token)
    stacked = AdapterLayout.of({"experts.lora_A.weight": (8, 3), "experts.lora_B.weight": (3, 8)})
    assert stacked.dim == 2 * LAYOUT.dim
    manifest = terms().model_copy(update={"layout": stacked.json.decode()})
    with pytest.raises(
        ConfigError, match=r"experts.lora_A.weight has shape \[8, 3\].* Name other layers in adapter.t"
    ):
        check_rank_terms(made, manifest, identities)
