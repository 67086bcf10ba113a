"""Warm start: a new run begins with the adapter of an earlier one, if that fits its model and its own adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from echelon.adapters.registry import FORMS
from echelon.compute.pool import Facts
from echelon.errors import CodecError, ConfigError
from echelon.messages.adapter import AdapterLayout, Vector, adapter_digest
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms, ParentTerms

SCALE = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
"""Fields of adapter_config.json that change what an adapter of given tensors computes."""
OWN_WORD = {"lora_alpha": "adapter.alpha", "use_rslora": "adapter.rslora", "use_dora": "adapter.dora"}


@dataclass(frozen=True)
class Parent:
    """What a run may start from.

    Attributes:
        source: how the user named it.
        adapter: float32[d].
        layout: how its tensors lie in the vector.
        config: its adapter_config.json.
        genesis_sha256: of the run that it is of, in hex; empty if no run is known.
        model_sha256: digest of the frozen weights that it was trained against, in hex; empty if it is not known.
        labels: of a classifier, its classes in the order of the outputs; None if they are not known.
        kind: of its adapter, if that is another than plain LoRA.
    """

    source: str
    adapter: Vector
    layout: AdapterLayout
    config: Mapping[str, Any]
    genesis_sha256: str = ""
    model_sha256: str = ""
    labels: tuple[str, ...] | None = None
    kind: AdapterTerms | None = None

    @property
    def terms(self) -> ParentTerms:
        """What the new run's signed terms say of it."""
        return ParentTerms(
            genesis_sha256=self.genesis_sha256, adapter_sha256=adapter_digest(self.adapter).hex()
        )


def started_from(facts: Facts, parent: Parent | None, labels: tuple[str, ...]) -> Facts:
    """The facts of a run that starts from a parent; as they are without one.

    Args:
        facts: of the new run.
        parent: what it starts from.
        labels: the new run's classes, if it trains a classifier.

    Raises:
        ConfigError: the parent's adapter is of another base, kind or seed, of other layers or shapes, or of another
            scale.
    """
    if parent is None:
        return facts
    config = json.loads(facts.adapter_config)
    _check_base(parent, facts, config)
    _check_kind(parent, facts.adapter)
    _check_layout(parent, AdapterLayout.from_json(facts.layout.encode()))
    for name in SCALE:
        theirs, ours = parent.config.get(name) or None, config.get(name) or None
        if theirs != ours:
            raise ConfigError(
                f"--from {parent.source}: its adapter has {name} {theirs}, this run's has {ours}; set "
                f"{OWN_WORD.get(name, 'the adapter')} as it was there"
            )
    if parent.labels is not None and parent.labels != labels:
        raise ConfigError(
            f"--from {parent.source}: its labels are {', '.join(parent.labels) or 'none'}, this run's are "
            f"{', '.join(labels) or 'none'}; give model.labels the same names in the same order"
        )
    return replace(facts, initial=parent.adapter, parent=parent.terms)


def _check_base(parent: Parent, facts: Facts, config: Mapping[str, Any]) -> None:
    if parent.model_sha256:
        if parent.model_sha256 != facts.model_sha256.hex():
            raise ConfigError(
                f"--from {parent.source}: it was trained on another base (weights {parent.model_sha256[:16]}…, here "
                f"{facts.model_sha256.hex()[:16]}…); set model.model, model.revision and model.dtype as they were there"
            )
        return
    theirs, ours = parent.config.get("base_model_name_or_path"), config.get("base_model_name_or_path")
    if theirs and ours and _last(theirs) != _last(ours):
        raise ConfigError(
            f"--from {parent.source}: its adapter is of the base {theirs}, and this run's model is {ours}; set "
            f"model.model to that base"
        )


def _check_kind(parent: Parent, ours: AdapterTerms | None) -> None:
    theirs = parent.kind
    here, there = (AdapterKind.LORA if one is None else one.kind for one in (ours, theirs))
    if here is not there:
        advice = (
            "export its adapter (echelon export) and start from that folder"
            if here is AdapterKind.LORA
            else f"name a run whose adapter.kind is {here.value}, or set adapter.kind to {there.value}"
        )
        raise ConfigError(
            f"--from {parent.source}: its adapter is of the kind {there.value}, this run's of the kind {here.value}; "
            f"{advice}"
        )
    if ours is None or theirs is None or FORMS[ours.kind].trains_a:
        return  # no base is frozen
    if ours.seed != theirs.seed:
        raise ConfigError(
            f"--from {parent.source}: its frozen bases are drawn from seed {theirs.seed}, this run's from seed "
            f"{ours.seed}; set seed to {theirs.seed} as it was there"
        )


def _last(name: object) -> str:
    """The last part of a model's id or path: whoever made the adapter may have had the base elsewhere."""
    return PurePosixPath(str(name)).name


def _check_layout(parent: Parent, layout: AdapterLayout) -> None:
    theirs = {entry.key: entry.shape for entry in parent.layout.entries}
    ours = {entry.key: entry.shape for entry in layout.entries}
    odd = sorted(theirs.keys() ^ ours.keys())
    if odd:
        where = "its adapter" if odd[0] in theirs else "this run's adapter"
        raise ConfigError(
            f"--from {parent.source}: {odd[0]} is in {where} alone ({len(odd)} such tensors); set adapter.targets and "
            f"model.task as they were there"
        )
    for key, shape in ours.items():
        if theirs[key] != shape:
            raise ConfigError(
                f"--from {parent.source}: {key} has shape {list(theirs[key])} there and {list(shape)} here; set "
                f"adapter.rank, and the model, as they were there"
            )


def read_weights(data: bytes, name: str) -> tuple[AdapterLayout, Vector]:
    """The layout and the vector of a safetensors file of an adapter; half precision is widened.

    Raises:
        ConfigError: it cannot be read, or holds tensors that are no floating-point numbers.
    """
    try:
        tensors = {key: _widened(key, fields) for key, fields in deserialize(data)}
        layout = AdapterLayout.of({key: tensor.shape for key, tensor in tensors.items()})
        return layout, layout.join(tensors)
    except (SafetensorError, CodecError, ValueError) as error:
        raise ConfigError(f"{name} is not a file of an adapter's weights: {error}") from error


def _widened(key: str, fields: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    raw, kind = bytes(fields["data"]), fields["dtype"]
    if kind == "BF16":
        flat = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in ("F16", "F32"):
        flat = np.frombuffer(raw, "<f2" if kind == "F16" else "<f4").astype(np.float32)
    else:
        raise ValueError(f"{key} is of type {kind}; an adapter's are F32, F16 or BF16")
    return flat.reshape(fields["shape"])
