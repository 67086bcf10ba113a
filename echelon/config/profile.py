"""The profile file of `echelon split plan`: classes of devices and the edge they share, with units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from echelon.config.problems import describe
from echelon.config.reading import load_yaml, read_file
from echelon.config.training import FieldName, Settings
from echelon.errors import ConfigError

MAX_PROFILE_BYTES = 1 << 20

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BYTES = {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
_FLOPS = {f"{prefix}FLOP/s": factor for prefix, factor in _DECIMAL.items()}
_BITS = {f"{prefix}bit/s": factor for prefix, factor in _DECIMAL.items()}
_RATES = {f"{unit}/s": factor for unit, factor in _BYTES.items()}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ/]*)")


def _quantity(units: Mapping[str, float]) -> BeforeValidator:
    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        match = _QUANTITY.fullmatch(value.strip())
        # Without a unit it is the base unit: YAML reads 2e10 as text.
        if match is None or match.group(2) not in {"", *units}:
            raise ValueError(f"{value!r} is no number with a unit of: {', '.join(units)}")
        return float(match.group(1)) * units.get(match.group(2), 1.0)

    return BeforeValidator(read)


Bytes = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False), _quantity(_BYTES)]
"""Bytes, or text such as `512 MiB`."""
FlopRate = Annotated[float, Field(gt=0, le=1e21, allow_inf_nan=False), _quantity(_FLOPS)]
"""Floating-point operations a second, or text such as `20 GFLOP/s`."""
BitRate = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False), _quantity(_BITS)]
"""Bits a second, or text such as `10 Mbit/s`."""
ByteRate = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False), _quantity(_RATES)]
"""Bytes a second, or text such as `8 GB/s`."""
Duration = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False), _quantity(_SECONDS)]
"""Seconds, or text such as `40 ms`."""
ClassName = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$")]


RUNTIME = 240.0 * 2**20
"""Bytes that a device's process takes besides torch and its part of the model, measured: see docs/elsa.md."""
RUNTIME_TEXT = (
    "Memory that a device's process takes besides torch and its part of the model (imports, kernels, allocator), "
    "e.g. `240 MiB`."
)


class ComputeSettings(Settings):
    """How fast a machine computes. `flops` alone will do; the other two make small models' estimates better."""

    flops: FlopRate = Field(description="Sustained rate of matrix products in training, e.g. `20 GFLOP/s`.")
    bandwidth: ByteRate | None = Field(
        default=None,
        description="Rate of element-wise operations, e.g. `8 GB/s`. None: their time is not counted.",
    )
    overhead: Duration = Field(default=0.0, description="Time that starting one kernel takes, e.g. `8 us`.")


class DeviceClassSettings(ComputeSettings):
    """One class of devices."""

    name: ClassName = Field(description="Name of the class.")
    memory: Bytes = Field(
        description="Memory that training may use besides what torch takes itself, e.g. `512 MiB`."
    )
    uplink: BitRate = Field(description="Device to edge, e.g. `10 Mbit/s`.")
    downlink: BitRate = Field(description="Edge to device, e.g. `40 Mbit/s`.")
    rtt: Duration = Field(default=0.0, description="Round trip between device and edge, e.g. `40 ms`.")


class EdgeProfileSettings(ComputeSettings):
    """The edge server that devices share."""

    devices: int = Field(default=1, ge=1, le=10_000, description="How many devices share it.")
    memory: Bytes | None = Field(default=None, description="Memory for training. None: no limit.")


class WorkSettings(Settings):
    """What is trained in one optimiser step."""

    sequence_length: int = Field(default=128, ge=1, le=1 << 20, description="Tokens per sequence.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Sequences per optimiser step.")
    dtype: Literal["fp32", "bf16"] = Field(default="fp32", description="Type of the frozen weights.")
    wire: Literal["fp32", "bf16", "int8"] = Field(
        default="bf16", description="Type of activations and gradients on the link."
    )
    compression: float = Field(
        default=1.0,
        ge=1,
        le=1000,
        allow_inf_nan=False,
        description="How many times fewer bytes than `wire` they take.",
    )
    feedback: bool = Field(
        default=False, description="Whether both sides keep what gradients lost (`split.encodings.feedback`)."
    )
    rank: int = Field(default=8, ge=1, le=1024, description="LoRA rank.")
    targets: Literal["all-linear"] | tuple[FieldName, ...] = Field(
        default="all-linear", min_length=1, description="Linear layers that carry LoRA."
    )
    labels: int | None = Field(
        default=None, ge=2, le=1 << 20, description="Classes of a classifier. None: a language model."
    )
    front: int = Field(default=1, ge=1, le=1000, description="Fewest blocks on the device before the cut.")
    back: int = Field(default=0, ge=0, le=1000, description="Fewest blocks on the device after the cut.")
    whole: bool = Field(
        default=True, description="Whether a device may train the whole model without an edge."
    )
    runtime: Bytes = Field(default=RUNTIME, description=RUNTIME_TEXT)
    slack: float = Field(
        default=0.1, ge=0, lt=1, allow_inf_nan=False,
        description="Share of the memory besides `runtime` that is left free.",
    )  # fmt: skip


class ProfileFile(Settings):
    """Everything that a split is planned from, apart from the model."""

    work: WorkSettings = Field(default=WorkSettings(), description="What is trained.")
    edge: EdgeProfileSettings = Field(description="The edge server.")
    classes: tuple[DeviceClassSettings, ...] = Field(
        min_length=1, max_length=64, description="Classes of devices, each planned on its own."
    )


def load_profile(path: Path) -> ProfileFile:
    """Read and validate a profile file.

    Raises:
        ConfigError: it cannot be read, is no YAML map, names a class twice, or has a setting that is not allowed.
    """
    document = load_yaml(read_file(path, "profile", MAX_PROFILE_BYTES), f"profile {path}")
    if not isinstance(document, dict):
        raise ConfigError(f"profile {path} is no map of settings: it needs `edge` and `classes`")
    try:
        profile = ProfileFile.model_validate(document)
    except ValidationError as error:
        lines = describe(error, document, ProfileFile)
        raise ConfigError(f"profile {path}:\n" + "\n".join(lines)) from None
    names = [device.name for device in profile.classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"profile {path}: two classes are called {twice[0]!r}; give each a name of its own")
    return profile
