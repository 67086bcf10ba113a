"""An adapter of any kind as PEFT's files: frozen tensors drawn again, products with cores, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.adapters.base import times_cores, uniform
from echelon.adapters.exported import core_key, filled, personal_layout
from echelon.errors import CodecError
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms

A, B, HEAD = "m.q.lora_A.weight", "m.q.lora_B.weight", "score.weight"
FILES = {A: (4, 6), B: (5, 4), HEAD: (2, 3)}


def terms(shapes: dict[str, tuple[int, ...]] = FILES, kind: AdapterKind = AdapterKind.FFA) -> AdapterTerms:
    return AdapterTerms(kind=kind, seed=9, files=AdapterLayout.of(shapes).json.decode())


def vector_of(layout: AdapterLayout) -> Vector:
    return np.arange(1, layout.dim + 1, dtype=np.float32)


def test_frozen_factors_are_drawn_and_what_travelled_stands_as_it_is() -> None:
    travelled = AdapterLayout.of({B: FILES[B], HEAD: FILES[HEAD]})
    layout, whole = filled(terms(), travelled, vector_of(travelled))
    found = layout.split(whole)
    assert found[A].tobytes() == uniform(A, FILES[A], 9).tobytes()
    assert np.concatenate([found[B].ravel(), found[HEAD].ravel()]).tolist() == list(range(1, 27))


@pytest.mark.parametrize(("heads", "rank"), [(1, 4), (2, 2)])
def test_cores_make_b_of_a_basis_that_is_drawn(heads: int, rank: int) -> None:
    travelled = AdapterLayout.of({core_key(B): (heads, rank, rank), HEAD: FILES[HEAD]})
    vector = vector_of(travelled)
    layout, whole = filled(terms(kind=AdapterKind.RAVAN), travelled, vector)
    cores = travelled.split(vector)[core_key(B)]
    assert layout.split(whole)[B].tobytes() == times_cores(uniform(B, FILES[B], 9), cores).tobytes()


@pytest.mark.parametrize(
    ("travelled", "words"),
    [
        ({B: (5, 4)}, "neither trained nor drawn"),
        ({B: (5, 4), HEAD: (2, 3), "other.weight": (1,)}, "has no place for other.weight"),
        ({core_key(B): (1, 3, 3), HEAD: (2, 3)}, "its cores"),
        ({core_key(B): (4, 4), HEAD: (2, 3)}, "its cores"),
        ({B: (4, 5), HEAD: (2, 3)}, "the layout says"),
    ],
)
def test_layouts_that_do_not_belong_together_are_refused(
    travelled: dict[str, tuple[int, ...]], words: str
) -> None:
    layout = AdapterLayout.of(travelled)
    with pytest.raises(CodecError, match=words):
        filled(terms(), layout, vector_of(layout))


def test_what_stays_on_a_device_is_zero_in_the_runs_file_and_its_own_in_the_devices() -> None:
    terms_, travelled = terms(kind=AdapterKind.FEDSA), AdapterLayout.of({A: FILES[A], HEAD: FILES[HEAD]})
    vector = vector_of(travelled)
    own = personal_layout(terms_)
    assert own is not None
    assert own.entries == AdapterLayout.of({B: FILES[B]}).entries
    layout, whole = filled(terms_, travelled, vector)
    assert not layout.split(whole)[B].any()
    personal = -vector_of(own)
    layout, whole = filled(terms_, travelled, vector, personal)
    found = layout.split(whole)
    assert found[B].tobytes() == personal.tobytes()
    assert np.concatenate([found[A].ravel(), found[HEAD].ravel()]).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    ("kind", "travelled", "personal", "words"),
    [
        (AdapterKind.FFA, {B: (5, 4), HEAD: (2, 3)}, 20, "has no part that stays on a device"),
        (AdapterKind.FEDSA, {A: (4, 6), B: (5, 4), HEAD: (2, 3)}, 20, "and yet it travelled"),
        (AdapterKind.FEDSA, {A: (4, 6), HEAD: (2, 3)}, 19, r"float32\[20\]"),
    ],
)
def test_a_part_that_does_not_belong_to_the_kind_is_refused(
    kind: AdapterKind, travelled: dict[str, tuple[int, ...]], personal: int, words: str
) -> None:
    layout = AdapterLayout.of(travelled)
    with pytest.raises(CodecError, match=words):
        filled(terms(kind=kind), layout, vector_of(layout), np.zeros(personal, np.float32))
