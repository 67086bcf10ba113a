"""The model card of an adapter: what it is of, how it was trained, what it reached, and how to verify it.

It stands beside the adapter as `README.md`, in the form that model hubs read. Paths of data are left out, since a card
is made to be published. Nobody signs it: what it says is checked by verifying the run that it names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from echelon.adapters.registry import FORMS
from echelon.config.run import RunSettings
from echelon.config.training import DataSettings
from echelon.messages.manifest import MILLION, RunManifest
from echelon.report.data import RunSummary

GENESIS = re.compile(r"^  genesis_sha256: '?([0-9a-f]{64})'?$", re.MULTILINE | re.ASCII)
ADAPTER = re.compile(r"^  adapter_sha256: '?([0-9a-f]{64})'?$", re.MULTILINE | re.ASCII)
BASE = re.compile(r"^  base_sha256: '?([0-9a-f]{64})'?$", re.MULTILINE | re.ASCII)
MAX_CARD_BYTES = 1 << 20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class CardFacts:
    """What a card is written from.

    Attributes:
        manifest: the signed terms of the run.
        summary: `summary.json`: genesis, losses, tokens.
        settings: the run file; None where only the log is known.
        adapter_sha256: of the adapter's vector, in hex; empty: the summary's, the final one.
        number: the commit that it is of; None: the last one.
    """

    manifest: RunManifest
    summary: RunSummary
    settings: RunSettings | None = None
    adapter_sha256: str = ""
    number: int | None = None

    @classmethod
    def of(cls, manifest: RunManifest, summary: Mapping[str, Any], settings: RunSettings) -> Self:
        """Those of the final adapter.

        Args:
            manifest: the signed terms.
            summary: as it stands in `summary.json`.
            settings: the run file.
        """
        return cls(manifest, RunSummary.model_validate(summary), settings)

    @property
    def digest(self) -> str:
        """SHA-256 of the adapter's vector, in hex."""
        return self.adapter_sha256 or self.summary.adapter_sha256

    @property
    def commit(self) -> int:
        """The commit that the adapter is of."""
        return self.number if self.number is not None else self.summary.commits or 0

    @property
    def is_final(self) -> bool:
        """Whether the summary's losses are those of this adapter."""
        return bool(self.summary.final_loss) and self.digest == self.summary.adapter_sha256


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the metadata that a hub reads in front."""
    name = facts.settings.name if facts.settings is not None else facts.manifest.run[:12]
    parts = [
        f"---\n{yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {name}: a LoRA adapter for {facts.manifest.model}",
        "Trained across privacy boundaries with Echelon. Only securely aggregated sums left a boundary, and the log of "
        "the run shows that this adapter is what those sums give.",
        "\n".join(_base(facts)),
        "\n".join(_data(facts)),
        "\n".join(_training(facts)),
        "\n".join(_losses(facts)),
        "\n".join(_verification(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_local(model: str) -> bool:
    """Whether a model's name is a folder of this machine."""
    return Path(model).expanduser().is_dir()


def _metadata(facts: CardFacts) -> dict[str, Any]:
    model = facts.manifest.model
    found: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-classification" if facts.manifest.labels else "text-generation",
        "tags": ["lora", "peft", "federated-learning", "secure-aggregation", "echelon"],
    }
    if not is_local(model) and HUB_ID.fullmatch(model):
        found["base_model"] = model
    found["echelon"] = {
        "run": facts.manifest.run,
        "genesis_sha256": facts.summary.genesis_sha256,
        "adapter_sha256": facts.digest,
        "commit": facts.commit,
        "base_sha256": facts.manifest.model_sha256,
    }
    if facts.manifest.parent is not None:
        found["echelon"]["parent"] = facts.manifest.parent.model_dump()
    return found


def _base(facts: CardFacts) -> Iterator[str]:
    model, labels = facts.manifest.model, facts.manifest.labels
    kind = "SequenceClassification" if labels else "CausalLM"
    yield "## Base"
    yield ""
    yield f"`{model}`; SHA-256 of its weights as they were loaded: `{facts.manifest.model_sha256}`."
    if labels:
        yield f"Classes, in the order of the outputs: {', '.join(f'`{label}`' for label in labels)}."
    yield ""
    if model.startswith("echelon:"):
        yield "The base ships with Echelon:"
        lines = [
            "from peft import PeftModel",
            f"from transformers import AutoModelFor{kind}",
            "import echelon",
            "",
            f'base = AutoModelFor{kind}.from_pretrained(echelon.base_folder("{model}"))',
            'model = PeftModel.from_pretrained(base, "path/to/this/folder")',
        ]
    else:
        if is_local(model):
            yield "The base is a folder of the machine where the run was made. Elsewhere, write its place into "
            yield "`base_model_name_or_path` of `adapter_config.json`, or load it yourself and give it to `PeftModel`."
            yield ""
        lines = [
            f"from peft import AutoPeftModelFor{kind}",
            "",
            f'model = AutoPeftModelFor{kind}.from_pretrained("path/to/this/folder")',
        ]
    yield "\n".join(["```python", *lines, "```"])


def described(data: DataSettings) -> str:
    """A source without its path: its kind, and where it is public its name."""
    kind, _, rest = data.source.partition(":")
    if kind in ("hf", "stdlib"):
        return f"{kind}:{rest}"
    return f"{kind} files"


def _data(facts: CardFacts) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield "| boundary | devices | data | dealt out |"
    yield "|---|---:|---|---|"
    settings = {} if facts.settings is None else {one.name: one for one in facts.settings.boundaries}
    for terms in facts.manifest.boundaries:
        boundary = settings.get(terms.name)
        what = "not described" if boundary is None else described(boundary.data)
        how = "" if boundary is None else boundary.data.partition
        yield f"| {terms.name} | {terms.slots} | {what} | {how} |"
    yield ""
    yield f"No sum over fewer than {facts.manifest.secure.floor} devices was ever revealed."


def _training(facts: CardFacts) -> Iterator[str]:
    manifest, settings = facts.manifest, facts.settings
    yield "## Training"
    yield ""
    rows = {
        "commit": f"{facts.commit}",
        "local steps per update (H)": f"{manifest.pace.steps}",
        "windows per delta (R)": f"{manifest.pace.windows}",
        "outer step": f"{manifest.outer.kind.value}, rate {manifest.outer.lr_ppm / MILLION:g}",
        "clipping of updates (L2)": f"{manifest.secure.clip_micro / MILLION:g}",
    }
    if settings is not None:
        train, adapter = settings.training, settings.adapter
        targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
        rows |= {
            "rank, alpha, dropout": f"{adapter.rank}, {adapter.alpha:g}, {adapter.dropout:g}",
            "adapted layers": targets,
            "learning rate": f"{train.lr:g}, {train.schedule}",
            "batch": f"{train.batch_size} × {train.accumulation} sequences of {train.sequence_length} tokens",
            "seed": f"{settings.seed}",
        }
    if manifest.adapter is not None:
        kind = manifest.adapter
        rows["kind of adapter"] = f"{kind.kind.value}; {_of_kind(facts)}"
    if facts.is_final:
        rows["tokens trained"] = f"{facts.summary.tokens}"
    if manifest.parent is not None:
        before = manifest.parent.genesis_sha256 or "no run that is known"
        rows["started from"] = f"adapter `{manifest.parent.adapter_sha256}` of genesis `{before}`"
    yield "| setting | value |"
    yield "|---|---|"
    for name, value in rows.items():
        yield f"| {name} | {value} |"


def _of_kind(facts: CardFacts) -> str:
    terms = facts.manifest.adapter
    assert terms is not None
    if FORMS[terms.kind].personal:
        return "B stays on each device and is 0 here, so this adapter alone changes nothing of the base"
    return f"its frozen bases are drawn from seed {terms.seed}"


def _losses(facts: CardFacts) -> Iterator[str]:
    if not facts.is_final:
        return
    yield "## Losses"
    yield ""
    yield "Mean loss on each boundary's validation split, in nats, before and after the run."
    terms = facts.manifest.adapter
    if terms is not None and FORMS[terms.kind].personal:
        yield "After it, each device's slice is measured with that device's own B."
    yield ""
    yield "| boundary | before | after |"
    yield "|---|---:|---:|"
    before, after = facts.summary.base_loss, facts.summary.final_loss
    for name in before:
        first, last = before[name], after.get(name)
        if first is not None and last is not None:
            yield f"| {name} | {first:.4f} | {last:.4f} |"


def _verification(facts: CardFacts) -> Iterator[str]:
    yield "## How to verify it"
    yield ""
    yield "Ask whoever published this for the exchange's log of the run: a run folder, or what `echelon audit export` "
    yield "wrote."
    yield ""
    yield "```"
    yield f"echelon audit verify LOG --genesis {facts.summary.genesis_sha256}"
    yield f"echelon export LOG --commit {facts.commit} --out again"
    yield "cmp again/adapter_model.safetensors adapter_model.safetensors"
    yield "```"
    yield ""
    yield f"The adapter's float32 vector has SHA-256 `{facts.digest}`."
    terms = facts.manifest.adapter
    if terms is not None and FORMS[terms.kind].personal:
        yield "It is that of A and of modules that were trained whole; B is 0."
    elif terms is not None:
        yield "It is the vector that was trained; the files hold the frozen bases besides."
