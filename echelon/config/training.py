"""Settings of the model, the adapter, local training and data. No torch here: they are read by every
process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from echelon.adapters.base import AdapterForm
from echelon.adapters.ravan import Ravan
from echelon.adapters.registry import FORMS
from echelon.messages.exchange import MAX_RANK_BLOCKS
from echelon.messages.kinds import AdapterKind

if TYPE_CHECKING:  # names that are computed are no Literal to the checker
    AdapterName: TypeAlias = str
else:
    AdapterName = Literal[tuple(kind.value for kind in AdapterKind)]

Text = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
FieldName = Annotated[str, StringConstraints(min_length=1, max_length=256)]

GpuNumber = Annotated[int, Field(ge=0, le=63)]
"""Number of a GPU of the machine, from 0."""

MAX_RANK = 1024
"""Largest rank of PEFT's A and B."""
MAX_LABELS = 4096
"""Most classes of a classifier."""
SOURCE_KINDS = ("stdlib", "text", "jsonl", "csv", "parquet", "hf")


class Settings(BaseModel):
    """Common rules: unknown keys are refused, numbers are finite, values do not change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """Which model is adapted, for what task, and how it is held in memory."""

    model: Text = Field(
        default="echelon:tiny",
        description="Hugging Face model id, path of a folder that transformers can load, or a model that "
        "ships with the package: `echelon:tiny` (about 1M parameters), `echelon:micro` (about 0.2M).",
    )
    revision: Text | None = Field(
        default=None,
        description="Branch, tag or commit of a Hugging Face model; none means its default branch.",
    )
    task: Literal["causal", "classify"] = Field(
        default="causal",
        description="causal: predict the next token. classify: predict the label of a whole text; the classifier's "
        "head is trained whole, beside the adapter.",
    )
    labels: tuple[FieldName, ...] = Field(
        default=(),
        max_length=MAX_LABELS,
        description="Of the task `classify`: names of the classes, in the order of the head's outputs.",
    )
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Type of the frozen weights and of the forward pass; the adapter stays fp32.",
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="Hold the weights of frozen linear layers in 4 bits (nf4: QLoRA, Dettmers et al. 2023) or 8 "
        "(int8), by bitsandbytes; none: as `dtype` says. Needs a GPU and the extra `quantization`; not for split "
        "training, and the adapter cannot be merged by `echelon export`.",
    )
    device_map: Literal["auto"] | dict[FieldName, GpuNumber] | None = Field(
        default=None,
        description="Spread the frozen model over the GPUs of this machine, for one training process: auto, or the "
        "number of a GPU for each path of a module, such as `{model.embed_tokens: 0, …}`. Without a GPU auto changes "
        "nothing. Not beside `compute.ranks`, several `compute.workers`, or split training.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    attention: Literal["sdpa", "eager"] = Field(
        default="sdpa",
        description="Attention implementation of transformers; models that have no `sdpa` use `eager` anyway.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Allow Python code from the model's repository to run on this machine."
    )

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if self.task == "causal" and self.labels:
            raise ValueError(
                "labels are classes of the task classify: set task: classify, or leave labels out"
            )
        if self.task == "classify" and len(self.labels) < 2:
            raise ValueError("the task classify needs labels: name at least two classes")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise ValueError(f"label {twice[0]!r} stands twice: name every class once")
        return self


class AdapterSettings(Settings):
    """The adapter: W + (alpha / rank) B A for every targeted linear layer (Hu et al. 2021, section 4.1)."""

    kind: AdapterName = Field(
        default="lora",
        description=f"{AdapterKind.described()} All but lora average exactly (docs/adapters.md).",
    )
    rank: int = Field(
        default=8, ge=1, le=1024, description="Rank of A and B, 1 to 1024; of ravan, rank of each head."
    )
    alpha: float = Field(
        default=16.0,
        gt=0,
        le=65536,
        allow_inf_nan=False,
        description="LoRA scale numerator; the scale is alpha / rank, of ravan alpha / (heads × rank).",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Dropout on the adapter's input, a probability in [0, 1).",
    )
    rslora: bool = Field(
        default=False,
        description="Rank-stabilised: the scale is alpha / sqrt(rank), so that larger ranks do not learn less "
        "(Kalajdzievski 2023).",
    )
    dora: bool = Field(
        default=False,
        description="Weight-decomposed: A and B change the direction of a layer's weights, whose lengths are trained "
        "beside them (Liu et al. 2024). More time in each step; not for stacked weights of experts, nor for split "
        "training.",
    )
    factors: Literal["both", "alternating"] = Field(
        default="both",
        description="Which factors are trained: both at once, or in turn (RoLoRA): B from even commits, A from "
        "odd ones. Of the kind lora.",
    )
    rank_blocks: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(),
        max_length=MAX_RANK_BLOCKS,
        description="Ranks that devices may have, ascending; the last is `rank`. A device of rank r trains the first r "
        "rows of A and columns of B, and rows that the same devices train are averaged over those alone. Empty: all "
        "devices train all rows. Of the kinds lora and ffa; see `boundaries[].devices[].rank`.",
    )
    ravan: Ravan = Field(default=Ravan(), description="The kind ravan.")
    targets: Literal["all-linear"] | tuple[FieldName, ...] = Field(
        default="all-linear",
        min_length=1,
        description="Names of the linear layers that get an adapter (for example `q_proj`), or `all-linear` for every "
        "linear layer except the output layer, and for stacked weights of experts and their routers.",
    )

    @property
    def form(self) -> AdapterForm:
        """The kind, with its own settings."""
        kind = AdapterKind(self.kind)
        return self.ravan if kind is AdapterKind.RAVAN else FORMS[kind]()

    @property
    def plain(self) -> AdapterSettings:
        """Settings of the plain LoRA adapter that an adapter of this kind is exported as."""
        fields = {"kind": "lora", "rank": self.form.width(self.rank), "ravan": Ravan()}
        return self.model_copy(update=fields)

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if self.form.width(self.rank) > MAX_RANK:
            raise ValueError(f"ravan: {self.ravan.heads} heads of rank {self.rank} are more than {MAX_RANK}")
        if self.kind != "ravan" and self.ravan != Ravan():
            raise ValueError(f"ravan is for the kind ravan, and kind is {self.kind}: leave it out")
        if self.kind != "lora" and self.factors != "both":
            raise ValueError(
                f"factors alternate in the kind lora, and kind is {self.kind}, which has averages that are exact: "
                "leave factors out"
            )
        if self.kind != "lora" and self.dora:
            raise ValueError(f"dora goes with the kind lora, and kind is {self.kind}: leave one out")
        self._check_rank_blocks()
        return self

    def _check_rank_blocks(self) -> None:
        blocks = self.rank_blocks
        if not blocks:
            return
        if list(blocks) != sorted(set(blocks)) or blocks[-1] != self.rank or len(blocks) < 2:
            raise ValueError(
                f"rank_blocks {list(blocks)} must be two ranks at least, ascend, and end with rank = {self.rank}: "
                f"write for example [{max(1, self.rank // 2)}, {self.rank}], or leave them out"
            )
        if self.form.cores or self.form.personal:
            other = "trains cores of rank × rank" if self.form.cores else "keeps B on the device"
            raise ValueError(
                f"rank_blocks are rows of A and columns of B, and kind {self.kind} {other}: set kind to lora or ffa, "
                "or leave rank_blocks out"
            )


class TrainSettings(Settings):
    """Local training on one device. H, mu and the progress in [0, 1] that drives the schedule come from
    the round."""

    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="What takes the steps. muon: the factors A and B of linear layers move along their momentum, with "
        "all singular values brought near 1 (Jordan et al. 2024), at a step as large as AdamW's; everything else moves "
        "by AdamW. For the kinds lora and ffa; needs torch 2.9.",
    )
    lr: float = Field(
        default=1e-2,
        gt=0,
        le=10,
        allow_inf_nan=False,
        description="Peak learning rate, per step, in (0, 10].",
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="cosine",
        description="Shape of the learning rate over the run's progress, after the warm-up.",
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Fraction of the run over which the rate rises, from a tenth of its peak.",
    )
    final_lr: float = Field(
        default=0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Rate at the run's end, as a fraction of `lr`.",
    )
    beta1: float = Field(
        default=0.9, ge=0, lt=1, allow_inf_nan=False, description="Decay of AdamW's first moment, per step."
    )
    beta2: float = Field(
        default=0.95, ge=0, lt=1, allow_inf_nan=False, description="Decay of AdamW's second moment, per step."
    )
    eps: float = Field(
        default=1e-8,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Term added to AdamW's denominator, in (0, 1].",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Decoupled weight decay, per step and unit of rate.",
    )
    momentum: float = Field(
        default=0.95, ge=0, lt=1, allow_inf_nan=False, description="Decay of Muon's momentum, per step."
    )
    clip_norm: float | None = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest Euclidean norm of a step's gradient; none: no clipping.",
    )
    batch_size: int = Field(default=8, ge=1, le=65536, description="Sequences per forward pass.")
    accumulation: int = Field(default=1, ge=1, le=65536, description="Forward passes per optimiser step.")
    packing: Literal["joined", "apart"] = Field(
        default="joined",
        description="Of a language model's sequences, which hold several short documents each: joined: tokens also see "
        "the documents before their own; apart: they see their own alone, and positions begin anew with each. A model "
        "that cannot do that is refused. Not for split training.",
    )
    sequence_length: int = Field(
        default=128,
        ge=2,
        le=1_048_576,
        description="Tokens per packed training sequence; of the task `classify`, most tokens of a row.",
    )


class DataSettings(Settings):
    """The data of one boundary: where documents come from, and how they are split and dealt to its
    devices."""

    source: Text = Field(
        description="`stdlib:PKG+PKG+...` (sources of the running Python), `text:GLOB`, `jsonl:GLOB`, "
        "`csv:GLOB`, `parquet:GLOB`, or `hf:NAME[:CONFIG][:SPLIT]` (split `train` unless named). In place of a "
        "pattern: one file exactly, or a folder; `.gz` files are unpacked.",
    )
    text_field: FieldName = Field(
        default="text", description="Field that holds a row's text (jsonl, parquet, hf)."
    )
    messages_field: FieldName | None = Field(
        default=None,
        description="Field that holds a conversation, a list of {role, content} or {from, value}. Rendered with the "
        "tokenizer's chat template; the loss counts assistant answers only. Rows without the field `text` whose fields "
        "are `messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output` are read by these "
        "names.",
    )
    prompt_field: FieldName | None = Field(
        default=None,
        description="Field of an instruction, used with `answer_field` as a conversation of one turn.",
    )
    answer_field: FieldName | None = Field(default=None, description="Field of the answer to `prompt_field`.")
    loss: Literal["answers", "all"] = Field(
        default="answers",
        description="Of conversations and of rows with `prompt` and `completion`: answers: the loss counts what the "
        "assistant says, or the completion; all: it counts everything, the prompt included.",
    )
    label_field: FieldName | None = Field(
        default=None,
        description="Field that holds a row's class, one of `model.labels` (task `classify`): a text, or an integer, "
        "which is read as its digits.",
    )
    domain_field: FieldName | None = Field(
        default=None,
        description="Field that names a row's domain for partitioning; otherwise the row's label is its "
        "domain, and without one the row's file.",
    )
    partition: Annotated[
        str, StringConstraints(pattern=r"^(iid|by-domain|dirichlet\([0-9]*\.?[0-9]+\))$")
    ] = Field(
        default="iid",
        description="How documents are dealt to devices: `iid`, `dirichlet(ALPHA)` over domains (small "
        "alpha: very "
        "unequal; 0.01 to 1000), or `by-domain`.",
    )
    validation_fraction: float = Field(
        default=0.1,
        gt=0,
        le=0.5,
        allow_inf_nan=False,
        description="Fraction of tokens, by whole documents, held out.",
    )
    max_validation_tokens: int = Field(
        default=16_384,
        ge=1,
        le=100_000_000,
        description="Most tokens that one evaluation of the boundary reads. Documents are shortened for it; rows with "
        "a label are left out instead.",
    )
    max_documents: int = Field(
        default=1_000_000,
        ge=2,
        le=100_000_000,
        description="Most documents read from the source, the first ones in order.",
    )
    max_left_out: float = Field(
        default=0.5,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Largest share of documents that may be left out, as empty ones are, without being an error.",
    )
    seed: int = Field(
        default=0, ge=0, lt=1 << 63, description="Seed of the validation split and of the partition."
    )

    @property
    def kind(self) -> str:
        """The part of `source` before the first colon."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part of `source` after the first colon."""
        return self.source.partition(":")[2]

    @property
    def dirichlet_alpha(self) -> float | None:
        """Alpha of `dirichlet(alpha)`, or none for the other partitions."""
        return float(self.partition[10:-1]) if self.partition.startswith("dirichlet") else None

    @property
    def is_chat(self) -> bool:
        """Whether rows are conversations."""
        return self.messages_field is not None or self.prompt_field is not None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind not in SOURCE_KINDS or not self.location:
            known = ", ".join(f"{kind}:..." for kind in SOURCE_KINDS)
            raise ValueError(f"source {self.source!r} is not understood; write one of {known}")
        alpha = self.dirichlet_alpha
        if alpha is not None and not 0.01 <= alpha <= 1000:
            raise ValueError(f"partition {self.partition!r}: alpha must be from 0.01 to 1000")
        if (self.prompt_field is None) != (self.answer_field is None):
            raise ValueError("prompt_field and answer_field go together: set both or neither")
        if self.messages_field is not None and self.prompt_field is not None:
            raise ValueError("messages_field and prompt_field exclude each other: set one of them")
        if self.is_chat and self.kind in ("stdlib", "text"):
            raise ValueError(
                f"conversations need rows with fields: use jsonl, csv, parquet or hf, not {self.kind}"
            )
        if self.label_field is not None and self.loss != "answers":
            raise ValueError("loss is for conversations: leave it out beside label_field")
        if self.label_field is not None and self.is_chat:
            raise ValueError(
                "label_field is for texts: leave messages_field, prompt_field and answer_field out"
            )
        if self.label_field is not None and self.kind in ("stdlib", "text"):
            raise ValueError(f"labels need rows with fields: use jsonl, csv, parquet or hf, not {self.kind}")
        return self


def check_task(model: ModelSettings, data: DataSettings, boundary: str) -> None:
    """Raise `ValueError` unless a boundary's data is of the model's task.

    Args:
        model: the run's model settings, for the task.
        data: the boundary's data settings, for the field of the label.
        boundary: its name, for the error.
    """
    if model.task == "classify" and data.label_field is None:
        raise ValueError(
            f"boundary {boundary!r}: the task classify needs data.label_field, the field of a row's class"
        )
    if model.task == "causal" and data.label_field is not None:
        raise ValueError(
            f"boundary {boundary!r}: data.label_field is for the task classify: set model.task, or leave it out"
        )
