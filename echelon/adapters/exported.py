"""An adapter of any kind as PEFT's two files, from the vector that travelled and the run's signed terms alone."""

from __future__ import annotations

import numpy as np

from echelon.adapters.base import times_cores, uniform
from echelon.adapters.registry import FORMS
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


def exported_files(manifest: RunManifest, vector: Vector, personal: Vector | None = None) -> dict[str, bytes]:
    """The files that `PeftModel.from_pretrained(base, folder)` reads, by name; equal input gives equal bytes.

    Args:
        manifest: the run's terms.
        vector: the adapter as it travelled, float32[d].
        personal: what stays on a device, float32[p], see `personal_layout`; None: zeros, as every device begins.

    Raises:
        CodecError: a vector, or what the terms say of its kind, does not fit the layout.
    """
    layout, whole = peft_vector(manifest, vector, personal)
    return adapter_files(layout, manifest.adapter_config.encode(), whole)


def peft_vector(
    manifest: RunManifest, vector: Vector, personal: Vector | None = None
) -> tuple[AdapterLayout, Vector]:
    """PEFT's tensors as one vector, and how they lie in it; for plain LoRA that is what travels.

    Args:
        manifest: the run's terms.
        vector: the adapter as it travelled, float32[d].
        personal: as of `exported_files`.

    Raises:
        CodecError: as `exported_files`.
    """
    layout = manifest.adapter_layout()
    if manifest.adapter is None:
        return layout, vector
    return filled(manifest.adapter, layout, vector, personal)


def personal_layout(terms: AdapterTerms) -> AdapterLayout | None:
    """How what stays on a device lies in one vector, float32[p]; None where all that is trained travels."""
    files = AdapterLayout.from_json(terms.files.encode())
    form = FORMS[terms.kind]
    shapes = {entry.key: entry.shape for entry in files.entries if form.stays(entry.key)}
    return AdapterLayout.of(shapes) if shapes else None


def filled(
    terms: AdapterTerms, layout: AdapterLayout, vector: Vector, personal: Vector | None = None
) -> tuple[AdapterLayout, Vector]:
    """PEFT's tensors, made of those that travelled, of a device's own, and of frozen ones that are drawn again.

    Args:
        terms: the adapter's kind, its seed, and the layout of PEFT's file.
        layout: of what travelled.
        vector: what travelled, float32[d].
        personal: as of `exported_files`.

    Raises:
        CodecError: the two layouts do not belong together, or the kind has no personal part and one is given.
    """
    given = layout.split(vector)
    own = personal_layout(terms)
    if own is None and personal is not None:
        raise CodecError(f"an adapter of the kind {terms.kind.value} has no part that stays on a device")
    if own is not None:
        found = own.split(np.zeros(own.dim, np.float32) if personal is None else personal)
        if given.keys() & found.keys():
            raise CodecError(f"{min(given.keys() & found.keys())} stays on a device, and yet it travelled")
        given |= found
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
