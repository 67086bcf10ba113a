"""What a finished run gives to Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from echelon.audit.findings import Report
from echelon.config.training import ModelSettings
from echelon.report.data import RunSummary

if TYPE_CHECKING:
    from echelon.run.federation import Result


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        summary: `summary.json`: losses before and after, tokens, commits, and more.
        audit: the verdict on the exchange's log, with its findings.
        weights: the final adapter, float32[d].
        model: the base, as the run file names it.
        metrics: what the own metrics gave, by name.
    """

    folder: Path
    summary: RunSummary
    audit: Report
    weights: npt.NDArray[np.float32]
    model: ModelSettings
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, result: Result, model: ModelSettings) -> RunResult:
        """What a federation left in its folder.

        Args:
            folder: the run folder.
            result: of the federation.
            model: the base.
        """
        return cls(folder, RunSummary.model_validate(result.summary), result.audit, result.adapter, model)

    @property
    def ok(self) -> bool:
        """Whether the audit found no error."""
        return self.audit.ok

    @property
    def adapter(self) -> Path:
        """The folder of the adapter, which `PeftModel.from_pretrained` reads."""
        return self.folder / "adapter"

    def load(self) -> tuple[Any, Any]:
        """The adapted model and its tokenizer, of transformers and PEFT alone.

        Raises:
            ConfigError: the base cannot be loaded.
        """
        import torch
        from peft import PeftModel

        from echelon.training.model import load_base

        base = load_base(self.model, torch.device("cpu"))
        return PeftModel.from_pretrained(base.model, self.adapter).eval(), base.tokenizer

    def rows(self) -> list[tuple[str, str]]:
        """The most telling figures, as texts."""
        summary = self.summary
        losses = [
            (f"loss {name}", f"{before:.4f} → {after:.4f}")
            for name, before in summary.base_loss.items()
            if before is not None and (after := summary.final_loss.get(name)) is not None
        ]
        return [
            *losses,
            ("commits", str(summary.commits)),
            ("tokens", str(summary.tokens)),
            ("audit", "verified" if self.ok else "NOT VERIFIED"),
            ("genesis", summary.genesis_sha256),
            *((name, f"{value:g}") for name, value in self.metrics.items()),
        ]

    def __str__(self) -> str:
        return "\n".join(f"{name:<16} {value}" for name, value in self.rows())

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """How IPython shows it on a terminal."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in self.rows()
        )
        return f"<table>{rows}</table>"


def base_folder(model: str) -> str:
    """Where a model that ships with the package is, for `from_pretrained`; any other name comes back as it is.

    Raises:
        ConfigError: no such model ships.
    """
    from echelon.training.model import model_path

    return model_path(ModelSettings(model=model)) if model.startswith("echelon:") else model
