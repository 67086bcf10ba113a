"""`echelon export`: the adapter of any commit, derived again from the exchange alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.errors import ConfigError

if TYPE_CHECKING:
    from echelon.audit.derived_adapter import DerivedAdapter
    from echelon.config.run import RunSettings
    from echelon.report.card import CardFacts

BEST, FINAL = "best", "final"


def export_command(
    source: Annotated[
        str,
        typer.Argument(
            help="Run folder, exported folder, .sqlite file or bus URL.", metavar="RUN", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the adapter.", metavar="DIR", show_default=False)],
    commit: Annotated[str, typer.Option(help="A commit's number, 0 for genesis; best; or final.")] = FINAL,
    *,
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model, the adapter merged into its base.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="With --merge: where the base is now, a folder or an id.", metavar="MODEL"),
    ] = None,
    as_json: JsonOption = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            "--rule",
            help="Allow a rule of the run's own, package.module:Class, to run here; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Write the adapter of a commit in PEFT's format.

    It is derived again from the exchange's log, so every byte of it is checked.

    "best" is the commit of the lowest validation loss over all boundaries.

    The run's own evaluations decide, or else the losses that crossed with the deltas.
    """
    with guarded():
        if base is not None and not merge:
            raise ConfigError(f"--base {base} goes with --merge: an adapter names the base of its run")
        number, why = _chosen(source, commit, rule)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: exists and is not empty; name a new folder")
        from echelon.run.adapter import write_adapter

        version = _derive(source, number, rule)
        try:
            card = _card(source, version)
            if merge:
                _merge(out, version, card.settings, base)
            else:
                write_adapter(out, version.files(), card)
        except OSError as error:
            raise ConfigError(
                f"--out {out}: cannot be written ({error.strerror}); name another folder"
            ) from error
        if as_json:
            facts = {
                "commit": version.commit,
                "chosen": why,
                "adapter_sha256": version.sha256.hex(),
                "out": str(out),
            }
            print_json(facts)
        else:
            typer.echo(f"commit {version.commit} ({why}), adapter {version.sha256.hex()}")
            typer.echo(f"written to {out}")


def _chosen(source: str, commit: str, rules: list[str] | None) -> tuple[int | None, str]:
    """The number that was asked for, None for the last one; and how it was found."""
    if commit == FINAL:
        return None, "the last one"
    if commit != BEST:
        if not commit.isascii() or not commit.isdigit():
            raise ConfigError(f"--commit {commit}: give a number, {BEST} or {FINAL}")
        return int(commit), "as asked"
    if (Path(source) / "metrics.jsonl").is_file():
        from echelon.report import best_evaluated, load

        lowest = best_evaluated(load(Path(source)))
        if lowest is not None:
            return lowest[0], f"the best by the run's own evaluations, loss {lowest[1]:.4f}"
    from echelon.audit.verify import Verifier
    from echelon.cli.audit_options import allowed
    from echelon.sources.exchange import opened

    with opened(source) as log:
        verifier = Verifier(log.topics, allow_open=True, rules=allowed(rules), findings=log.findings)
        for _ in verifier.run():
            pass
    best = verifier.report.best_commit
    if best is None:
        raise ConfigError(f"{source} holds no evaluation of any commit: name a number, or {FINAL}")
    return best, "the best by the losses that crossed with the deltas"


def _merge(out: Path, version: DerivedAdapter, settings: RunSettings | None, base: str | None) -> None:
    """Write the full model of a version. What the log does not say of the base is taken from the run file."""
    from echelon.adapters.exported import peft_vector
    from echelon.config.training import AdapterSettings, ModelSettings
    from echelon.training.merge import Weights, merge_into

    manifest = version.manifest
    if settings is not None:
        model, adapter = settings.model, settings.adapter.plain
    else:
        config = json.loads(manifest.adapter_config)
        model = ModelSettings(
            model=manifest.model,
            revision=config.get("revision"),
            task="classify" if manifest.labels else "causal",
            labels=manifest.labels,
        )
        adapter = AdapterSettings(
            rank=config["r"], alpha=config["lora_alpha"], targets=tuple(config["target_modules"])
        )
    if base is not None:
        model = model.model_copy(update={"model": base, "revision": None})
    layout, vector = peft_vector(manifest, version.adapter)
    merge_into(out, model, adapter, Weights(layout, vector, manifest.model_sha256))


def _card(source: str, version: DerivedAdapter) -> CardFacts:
    """What the log says, and what the run folder says besides, if there is one."""
    from echelon.config.run import load
    from echelon.report.card import CardFacts
    from echelon.report.data import RunSummary
    from echelon.report.data import load as load_report

    folder, summary = Path(source), None
    if (folder / "summary.json").is_file():
        summary = load_report(folder).summary
    summary = (summary or RunSummary()).model_copy(update={"genesis_sha256": version.genesis_sha256.hex()})
    settings = load(folder / "config.yaml") if (folder / "config.yaml").is_file() else None
    return CardFacts(version.manifest, summary, settings, version.sha256.hex(), version.commit)


def _derive(source: str, number: int | None, rules: list[str] | None) -> DerivedAdapter:
    from echelon.audit.replay import replay
    from echelon.cli.audit_options import allowed
    from echelon.sources.exchange import opened

    chosen: DerivedAdapter | None = None
    newest = 0
    with opened(source) as log:
        for version in replay(log.topics, rules=allowed(rules), findings=log.findings):
            newest = version.commit
            if number is None or version.commit == number:
                chosen = version
    if chosen is None:
        raise ConfigError(f"--commit {number}: the log has commits 0 to {newest}")
    return chosen
