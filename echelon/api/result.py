"""What a finished run gives to Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from echelon.audit.findings import Report
from echelon.config.run import load
from echelon.config.training import ModelSettings
from echelon.errors import AuditError, ConfigError
from echelon.report.data import RunSummary
from echelon.report.data import load as load_report
from echelon.run.opening import CONFIG_FILE, RULES_FOLDER
from echelon.sources.exchange import opened
from echelon.wiring.plugins import look_beside, rules_of

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

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """A run that finished earlier, from its folder. Its exchange and its adapter are verified anew.

        Args:
            folder: the run folder.

        Raises:
            ConfigError: no finished run is there, or a file of it cannot be read.
            AuditError: no adapter follows from its exchange.
        """
        folder = Path(folder)
        look_beside(folder / RULES_FOLDER)
        summary = load_report(folder).summary
        if summary is None or not summary.genesis_sha256:
            raise ConfigError(f"{folder}: no finished run is there; go on with it by echelon.Run.resume")
        settings = load(folder / CONFIG_FILE)
        weights: npt.NDArray[np.float32] | None = None
        with opened(str(folder)) as source:
            verifier = source.verifier(
                rules=rules_of(settings), genesis=bytes.fromhex(summary.genesis_sha256)
            )
            for version in verifier.run():
                weights = version.adapter
        if weights is None:
            raise AuditError(
                f"{folder}: no adapter follows from its exchange: {next(iter(verifier.report.findings), '')}"
            )
        metrics = dict(summary.metrics)
        return cls(folder, summary, verifier.report, weights, settings.model, metrics)

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
            *(
                (f"{name} {boundary}", f"{mean:g}")
                for name, means in summary.final_metrics.items()
                for boundary, mean in means.items()
                if mean is not None
            ),
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
