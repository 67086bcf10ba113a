"""An adapter of any kind as PEFT's two files, from the vector that travelled and the run's signed terms alone."""

from __future__ import annotations

import numpy as np

from echelon.adapters.base import times_cores, uniform
from echelon.errors import CodecError
from echelon.messages.adapter import (
    F32,
    AdapterLayout,
    LayoutEntry,
    Vector,
    adapter_files,
    starts_random,
)
from echelon.messages.manifest import AdapterTerms, RunManifest

CORE = "core"
"""Last part of a core's key, in place of `weight`."""
SCALE = "scale"
"""Last part of the key of its scales, which do not travel."""


def exported_files(manifest: RunManifest, vector: Vector) -> dict[str, bytes]:
    """The files that `PeftModel.from_pretrained(base, folder)` reads, by name; equal input gives equal bytes.

    Args:
        manifest: the run's terms.
        vector: the adapter as it travelled, float32[d].

    Raises:
        CodecError: the vector, or what the terms say of its kind, does not fit the layout.
    """
    layout, whole = peft_vector(manifest, vector)
    return adapter_files(layout, manifest.adapter_config.encode(), whole)


def peft_vector(manifest: RunManifest, vector: Vector) -> tuple[AdapterLayout, Vector]:
    """PEFT's tensors as one vector, and how they lie in it; for plain LoRA that is what travels.

    Args:
        manifest: the run's terms.
        vector: the adapter as it travelled, float32[d].

    Raises:
        CodecError: as `exported_files`.
    """
    layout = manifest.adapter_layout()
    if manifest.adapter is None:
        return layout, vector
    return filled(manifest.adapter, layout, vector)


def filled(terms: AdapterTerms, layout: AdapterLayout, vector: Vector) -> tuple[AdapterLayout, Vector]:
    """PEFT's tensors, made of those that travelled and of frozen ones that are drawn again.

    Args:
        terms: the adapter's kind, its seed, and the layout of PEFT's file.
        layout: of what travelled.
        vector: what travelled, float32[d].

    Raises:
        CodecError: the two layouts do not belong together.
    """
    given = layout.split(vector)
    files = AdapterLayout.from_json(terms.files.encode())
    tensors = {entry.key: _tensor(entry, given, terms.seed) for entry in files.entries}
    if given:
        raise CodecError(f"the file of a {terms.kind.value} adapter has no place for {min(given)}")
    return files, files.join(tensors)


def _tensor(entry: LayoutEntry, given: dict[str, F32], seed: int) -> F32:
    """One tensor of the file; what it is made of is taken out of `given`."""
    if entry.key in given:
        return given.pop(entry.key)
    core = given.pop(core_key(entry.key), None)
    if core is None:
        if not starts_random(entry.key):
            raise CodecError(f"{entry.key} of PEFT's file is neither trained nor drawn")
        return uniform(entry.key, entry.shape, seed)
    shape = core.shape
    if len(shape) != 3 or shape[1] != shape[2] or entry.shape[1:] != (shape[0] * shape[1],):
        raise CodecError(f"{entry.key} has shape {list(entry.shape)}, and its cores {list(shape)}")
    return times_cores(uniform(entry.key, entry.shape, seed), np.ascontiguousarray(core))


def core_key(key: str) -> str:
    """The key of the cores that stand behind the B of that key."""
    return f"{key.removesuffix('weight')}{CORE}"
