"""Load a language model or a classifier, freeze it, and attach LoRA with PEFT."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from echelon.adapters.base import uniform
from echelon.config.training import AdapterSettings, ModelSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, Vector, starts_random
from echelon.training.adapter_layers import adapted_names, choose_targets, layers_of, linear_names
from echelon.training.forms import FACTOR, take_form
from echelon.training.layout import ADAPTER
from echelon.training.learner import AdapterLayers
from echelon.training.model_files import check_config, check_path, check_tokenizer, check_weights
from echelon.training.new_weights import draw_missing, new_modules, saved_whole
from echelon.training.one_model import check_blocks, check_quantised, check_shapes
from echelon.training.placement import check_placed, placed
from echelon.training.quantisation import quantised_options, scales
from echelon.training.reasons import reason_of
from echelon.training.tasks.registry import task_named

SHIPPED_NAME = "echelon:tiny"
SHIPPED_PATH = Path(__file__).parent.parent / "assets" / "base"
SHIPPED = {SHIPPED_NAME: SHIPPED_PATH, "echelon:micro": SHIPPED_PATH.parent / "micro"}
"""What ships: about 1M and 0.2M parameters. All of them use the tokenizer in `SHIPPED_PATH`."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FACTOR = re.compile(r"\.lora_(A|B|embedding_A|embedding_B)(\.|$)")
_WRAPPED = re.compile(r"(\.base_layer)+\.")
_HEADS = {"classify": ("classifier", "score")}
"""By task: how names of modules end that PEFT trains whole by itself."""


class Loaded(NamedTuple):
    """A frozen model, and the paths of those of its modules that its files do not have."""

    model: PreTrainedModel
    new: tuple[str, ...]


class FrozenBase(NamedTuple):
    """A frozen model, its tokenizer, and the paths of those of its modules that its files do not have."""

    model: PreTrainedModel
    tokenizer: Any
    new: tuple[str, ...]


def limit_threads(count: int = 1) -> None:
    """So many compute threads in this process: devices are parallel as processes, not inside one."""
    torch.set_num_threads(count)


def model_path(settings: ModelSettings) -> str:
    """What transformers is asked for: the shipped folder, a local folder, or a Hugging Face id.

    Raises `ConfigError` for something that looks like a path and is no folder.
    """
    name = settings.model
    if name in SHIPPED:
        return str(SHIPPED[name])
    if name.startswith("echelon:"):
        raise ConfigError(
            f"model {name!r} does not ship with the package; there are {', '.join(map(repr, SHIPPED))}"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    check_path(name, path)
    return name


def tokenizer_path(settings: ModelSettings) -> str:
    """Where the model's tokenizer is: in its own folder, except that shipped models share one. As `model_path`."""
    return str(SHIPPED_PATH) if settings.model in SHIPPED else model_path(settings)


def read_config(settings: ModelSettings) -> dict[str, Any]:
    """The model's configuration as plain values; no weights are read. Raises `ConfigError` when it cannot be had."""
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision is not None:
        options["revision"] = settings.revision
    try:
        config: dict[str, Any] = AutoConfig.from_pretrained(model_path(settings), **options).to_dict()
    except Exception as error:  # the libraries, and code that a model brings, raise whatever they like
        raise ConfigError(
            f"configuration of model {settings.model!r} cannot be read: {reason_of(error)}. Check the id or path, and, "
            "for a model of the hub, that it is reachable or in the local cache"
        ) from error
    return config


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokenizer. Raises `ConfigError` when it cannot be loaded."""
    folder = Path(tokenizer_path(settings))
    if folder.is_dir():
        check_tokenizer(folder)
    with _refusals(settings, "that it is a language model"):
        # The tokenizer asks for it, too, and what is wrong with it is not the tokenizer's.
        AutoConfig.from_pretrained(model_path(settings), **_options(settings))
    with (
        _refusals(settings, "those of its tokenizer above all", "the tokenizer of model"),
        _no_progress_bars(),
    ):
        return AutoTokenizer.from_pretrained(tokenizer_path(settings), **_options(settings))


def load_base(settings: ModelSettings, device: torch.device) -> FrozenBase:
    """The frozen model and its tokenizer. Raises `ConfigError` when either cannot be loaded."""
    check_files(settings)
    tokenizer = load_tokenizer(settings)
    config = model_config(settings)
    if (
        not settings.trust_remote_code
    ):  # code that a model brings may name a class that the library does not know
        model_class(config, settings.task)
    loaded = load_pretrained(task_named(settings.task).library, settings, config)
    if settings.quantization is None and not placed(settings):  # else it was put there as it was read
        nn.Module.to(loaded.model, device)  # in place
    return FrozenBase(loaded.model, tokenizer, loaded.new)


def model_config(settings: ModelSettings) -> Any:
    """The model's configuration, its own dropout switched off: only the adapter's setting decides.

    What the task needs besides is set, too: a classifier's labels, for instance. Raises `ConfigError` when it cannot be
    read.
    """
    folder = Path(model_path(settings))
    if folder.is_dir():
        check_config(folder)
    with _refusals(settings, "that it is a language model"):
        config = AutoConfig.from_pretrained(model_path(settings), **_options(settings))
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop", "dropout_prob")) and isinstance(value, float):
            setattr(config, name, 0.0)
    task_named(settings.task).configure(config, settings.labels, lambda: load_tokenizer(settings))
    return config


def model_class(config: Any, task: str) -> type[PreTrainedModel]:
    """The library's class for a configuration and a task. Raises `ConfigError` if it has none."""
    mapping = task_named(task).library._model_mapping
    if type(config) not in mapping:
        raise ConfigError(
            f"a model of type {config.model_type!r} cannot be used for the task {task!r}: choose one of another type"
        )
    found = mapping[type(config)]
    chosen: type[PreTrainedModel] = found[0] if isinstance(found, tuple | list) else found
    return chosen


def load_pretrained(
    kind: Any,
    settings: ModelSettings,
    config: Any,
    *,
    task: str | None = None,
    partial: bool = False,
    place: str | None = None,
) -> Loaded:
    """A model of a transformers class (or auto class), frozen, in main memory.

    A head that the files do not have, as when a language model becomes a classifier, is drawn from its own name: the
    same bits in every process.

    Args:
        kind: the class.
        settings: where the model is, and how it is held.
        config: its configuration.
        task: what for; None: as the settings say.
        partial: only some of its modules are read.
        place: "meta": shapes alone; no weights are read.

    Raises:
        ConfigError: files cannot be read, or lack weights that no head has.
    """
    check_files(settings)
    check_quantised(settings.model, config)
    held = {"device_map": place} if place else _held(settings)
    task = settings.task if task is None else task
    # A classifier's head is made here when the files have none, and a language model's is not missed.
    expected = partial or place is not None or task_named(task).head_is_new
    quiet = _report_silent() if expected else contextlib.nullcontext()
    with _refusals(settings, "that it is a language model of the wanted kind"), _no_progress_bars(), quiet:
        model, report = kind.from_pretrained(
            model_path(settings),
            config=config,
            dtype=_DTYPES[settings.dtype],
            # Of itself the library takes sdpa where the model has it, and eager elsewhere.
            attn_implementation=None if settings.attention == "sdpa" else settings.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            **held,
            **_options(settings),
        )
    loaded: PreTrainedModel = model
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    check_shapes(settings.model, report)
    check_placed(loaded, settings.model)
    if not partial:
        check_blocks(loaded, settings.model, report)
    missing = sorted(report["missing_keys"])
    new = new_modules(loaded, missing, settings.model)
    if new and not task_named(task).head_is_new:
        raise ConfigError(
            f"model {settings.model!r} has no weights {missing[0]}, which the task {task} needs: it is damaged, or of "
            "another kind"
        )
    if place is None:
        draw_missing(loaded, missing, float(getattr(config, "initializer_range", 0.02)))
    return Loaded(loaded, new)


def _held(settings: ModelSettings) -> dict[str, Any]:
    return quantised_options(settings, _DTYPES[settings.dtype]) | placed(settings)


def check_files(settings: ModelSettings) -> None:
    """Look at the weights of a model in a folder. Raises `ConfigError` where they cannot be used."""
    folder = Path(model_path(settings))
    if folder.is_dir():
        check_weights(folder)


def longest_sequence(model: PreTrainedModel) -> int | None:
    """Most tokens that a model has positions for; None if there is no such bound.

    Tables of positions that begin behind the padding's (RoBERTa and its kin) hold fewer than the configuration says.
    """
    stated = getattr(model.config, "max_position_embeddings", None)
    bounds = [stated] if isinstance(stated, int) and stated > 0 else []
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            bounds.append(module.num_embeddings - skipped)
    return min(bounds, default=None)


def _options(settings: ModelSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.revision is not None:
        options["revision"] = settings.revision
    return options


@contextlib.contextmanager
def _refusals(settings: ModelSettings, kind: str, what: str = "model") -> Iterator[None]:
    """What the library raises for a model, or a part of it, that it cannot load, as `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # the libraries, and code that a model brings, raise whatever they like
        there = Path(settings.model).expanduser().is_dir()
        advice = (
            f"Check its files, and {kind}"
            if there
            else f"Check the id, {kind}, and that the hub is reachable, or the model in the local cache"
        )
        raise ConfigError(
            f"{what} {settings.model!r} cannot be loaded: {reason_of(error)}. {advice}"
        ) from error


@contextlib.contextmanager
def _report_silent() -> Iterator[None]:
    """The library lists every tensor that it does not load; for a part of a model those are as they should be."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading bars would break into the display of the run."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def attach_adapter(
    model: PreTrainedModel,
    settings: AdapterSettings,
    checkpointing: bool,
    task: str = "causal",
    new: Sequence[str] = (),
) -> PeftModel:
    """The model with LoRA on its targets, in training mode.

    Args:
        model: frozen.
        settings: of the adapter.
        checkpointing: recompute activations in the backward pass.
        task: causal, masked or classify.
        new: paths of modules that the model's files do not have.

    Raises:
        ConfigError: a target is no layer of the model.
    """
    advice = _advice(model)
    wrapped = attach_lora(model, settings, task, checkpointing, new)
    if not isinstance(settings.targets, str):
        adapted = adapted_names(wrapped)
        unused = [
            t for t in sorted(settings.targets) if not any(n == t or n.endswith(f".{t}") for n in adapted)
        ]
        if unused:
            raise ConfigError(f"adapter target {unused[0]!r} is no layer of the model; {advice}")
    return wrapped


def attach_lora(
    model: PreTrainedModel, settings: AdapterSettings, task: str, checkpointing: bool, new: Sequence[str] = ()
) -> PeftModel:
    """The model, or a part of one, with LoRA on those of the targets that it has, in training mode.

    A classifier's head is trained whole, and so is what the model's files do not have.

    Args:
        model: frozen.
        settings: of the adapter.
        task: causal, masked or classify.
        checkpointing: recompute activations in the backward pass.
        new: paths of modules that the model's files do not have.

    Raises:
        ConfigError: it has none of the targets.
    """
    heads = _HEADS.get(task, ())
    whole = saved_whole(model, new, heads)
    targets = choose_targets(model, settings, whole)
    form = settings.form
    config = LoraConfig(
        r=form.width(settings.rank),
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by the rank
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        target_modules=targets.modules if isinstance(targets.modules, str) else list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        modules_to_save=[name for name in whole if name not in heads] or None,
        task_type=task_named(task).adapter,
    )
    advice = _advice(model)
    try:
        with _known_warnings_silent():
            wrapped = get_peft_model(model, config, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"adapter targets {settings.targets} cannot be used: {error}; {advice}") from error
    for name, module in wrapped.named_modules():
        if name.endswith(f".modules_to_save.{ADAPTER}"):
            # A head that is trained stays in full precision, as adapters do, whatever the frozen weights are.
            nn.Module.to(module, torch.float32)
            module.register_forward_pre_hook(_in_full_precision, with_kwargs=True)
    take_form(wrapped, form)
    if checkpointing:
        with _known_warnings_silent():
            wrapped.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    wrapped.train()
    return wrapped


def _in_full_precision(
    _module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_full, inputs)), {name: _full(value) for name, value in named.items()}


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _advice(model: nn.Module) -> str:
    linear = sorted({name.rpartition(".")[2] for name in linear_names(model)})
    return f"this model's linear layers are: {', '.join(linear)}; or use all-linear"


@contextlib.contextmanager
def _known_warnings_silent() -> Iterator[None]:
    """Silence two warnings that no user of ours could act on."""
    with warnings.catch_warnings():
        # For GPT-2's transposed layers PEFT corrects fan_in_fan_out and says so.
        warnings.filterwarnings("ignore", message="fan_in_fan_out")
        # A rename inside transformers that PEFT and the older name are still on.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


def find_adapter_layers(settings: ModelSettings, adapter: AdapterSettings) -> AdapterLayers:
    """Which layers of a model get an adapter, without reading its weights.

    Args:
        settings: of the model.
        adapter: its settings.

    Raises:
        ConfigError: the model's files cannot be used, or an adapter's target is no layer of it.
    """
    config = model_config(settings)
    task = settings.task
    kind = task_named(task).library if settings.trust_remote_code else model_class(config, task)
    model, new = load_pretrained(kind, settings, config, place="meta")
    with torch.device("meta"):
        return layers_of(attach_adapter(model, adapter, False, task, new))


def whole_modules(layout: AdapterLayout, vector: Vector) -> dict[str, Vector]:
    """An adapter's tensors that are no LoRA factors, by key: modules that are trained whole, and DoRA's lengths."""
    return {key: part.copy() for key, part in layout.split(vector).items() if not _FACTOR.search(key)}


def initial_adapter(layout: AdapterLayout, seed: int, heads: Mapping[str, Vector] | None = None) -> Vector:
    """The genesis adapter, float32[d]: A uniform in +-1/sqrt(fan_in), B = 0, so the product is 0.

    Where A is frozen it is not in the vector. For embeddings it is the other way round, as in PEFT: A = 0. Modules that
    are trained whole begin as in `heads`, by key, and at 0 without it.

    Args:
        layout: keys, shapes and offsets of the adapter; its `dim` is d.
        seed: of the run. The same seed and layout give the same bits everywhere.
        heads: values of modules that are trained whole, by the key of their tensor.
    """
    vector = np.zeros(layout.dim, dtype=np.float32)
    for entry in layout.entries:
        if starts_random(entry.key):
            vector[entry.offset : entry.offset + entry.size] = uniform(entry.key, entry.shape, seed).ravel()
        elif heads is not None and entry.key in heads:
            vector[entry.offset : entry.offset + entry.size] = heads[entry.key].ravel()
    return vector


def adapter_config_json(model: PeftModel, settings: ModelSettings) -> bytes:
    """PEFT's `adapter_config.json` in canonical form: sorted keys and lists. The base is named as the run file does."""
    fields = model.peft_config[ADAPTER].to_dict()
    fields["base_model_name_or_path"] = settings.model
    fields["revision"] = settings.revision
    fields["inference_mode"] = True
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    return json.dumps(plain, indent=2, sort_keys=True).encode() + b"\n"


def base_digest(model: PeftModel) -> bytes:
    """SHA-256 of the frozen weights as loaded, 32 bytes: what the adapter was trained against.

    Over the parameters in order of name (tied ones once), each as name, dtype, shape and little-endian bytes.
    It does not depend on how files are sharded; it does depend on the dtype of loading.
    """
    tensors = {
        _WRAPPED.sub(".", name.removeprefix("base_model.model.")): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and FACTOR not in name
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        for found in (tensors[name], *scales(tensors[name])):
            tensor = found.detach().cpu().contiguous()
            digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
