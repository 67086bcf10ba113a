"""`echelon export`: the adapter of any commit, derived again from the exchange alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.errors import ConfigError
from echelon.private import private_folder

if TYPE_CHECKING:
    from echelon.audit.derived_adapter import DerivedAdapter
    from echelon.config.run import RunSettings
    from echelon.messages.adapter import Vector
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
    device: Annotated[
        str | None,
        typer.Option(
            help="Of adapter.kind fedsa: write this device's own adapter, with the B of its state. It never left the "
            "device; keep it inside the boundary.",
            metavar="NAME",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            help="With --device: its state file or folder. Default: the run folder's.", metavar="PATH"
        ),
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
        wanted = Wanted(
            source=source,
            out=out,
            commit=commit,
            merge=merge,
            base=base,
            device=device,
            state=state,
            rules=rule,
        )
        facts = _export(wanted)
        print_json(facts) if as_json else _say(facts)


@dataclass(frozen=True)
class Wanted:
    """What the command was asked for; see its options."""

    source: str
    out: Path
    commit: str
    merge: bool
    base: str | None
    device: str | None
    state: Path | None
    rules: list[str] | None


def _export(wanted: Wanted) -> dict[str, Any]:
    """Write what is wanted, and say what it is.

    Raises:
        ConfigError: options that do not go together, or a folder that cannot be written.
    """
    out, merge = wanted.out, wanted.merge
    if wanted.base is not None and not merge:
        raise ConfigError(f"--base {wanted.base} goes with --merge: an adapter names the base of its run")
    if wanted.state is not None and wanted.device is None:
        raise ConfigError(f"--state {wanted.state} goes with --device: name the device whose state it is")
    number, why = _chosen(wanted.source, wanted.commit, wanted.rules)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists and is not empty; name a new folder")
    version = _derive(wanted.source, number, wanted.rules)
    personal, own = _own_part(wanted, version), _has_own(version)
    if merge and personal is None and own:
        raise ConfigError(
            "--merge: B of this run stays on its devices, and A alone, merged, is the base: name a device, whose "
            "own adapter is merged then, with --device"
        )
    try:
        card = _card(wanted.source, version)
        _write(out, version, personal, card=card, merge=merge, base=wanted.base)
    except OSError as error:
        raise ConfigError(
            f"--out {out}: cannot be written ({error.strerror}); name another folder"
        ) from error
    facts = {"commit": version.commit, "chosen": why, "adapter_sha256": version.sha256.hex(), "out": str(out)}
    return facts | ({"device": wanted.device} if own else {})


def _has_own(version: DerivedAdapter) -> bool:
    from echelon.run.personal import is_personal

    return is_personal(version.manifest)


def _own_part(wanted: Wanted, version: DerivedAdapter) -> Vector | None:
    """What stays on a device, float32[p]; None where no device is named.

    Raises:
        ConfigError: there is none.
    """
    from echelon.run.personal import OwnPart

    if wanted.device is None:
        return None
    return OwnPart.of(wanted.device, wanted.state, wanted.source).read(version.manifest)


def _say(facts: dict[str, Any]) -> None:
    """What was written, for a person."""
    typer.echo(f"commit {facts['commit']} ({facts['chosen']}), adapter {facts['adapter_sha256']}")
    if facts.get("device"):
        typer.echo(f"with the own part of {facts['device']}: it is that device's alone, and no log shows it")
    elif "device" in facts:
        typer.echo("B stays on the devices and is 0 here: this adapter alone changes nothing of the base")
    typer.echo(f"written to {facts['out']}")


def _write(
    out: Path,
    version: DerivedAdapter,
    personal: Vector | None,
    *,
    card: CardFacts,
    merge: bool,
    base: str | None,
) -> None:
    """Write an adapter, or the whole model. What has a device's own part is for its owner alone.

    Args:
        out: the new folder.
        version: the adapter.
        personal: what stays on a device, float32[p]; None: nobody's.
        card: what the card says.
        merge: write the whole model.
        base: where the base is now, if that is elsewhere.

    Raises:
        OSError: it cannot be written.
    """
    from echelon.run.adapter import write_adapter
    from echelon.run.personal import write_own

    if personal is not None:
        private_folder(out)
    if merge:
        _merge(out, version, card.settings, base, personal)
    elif personal is not None:
        write_own(out, version.manifest, version.adapter, personal)
    else:
        write_adapter(out, version.files(), card)


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


def _merge(
    out: Path,
    version: DerivedAdapter,
    settings: RunSettings | None,
    base: str | None,
    personal: Vector | None,
) -> None:
    """Write the full model of a version. What the log does not say of the base is taken from the run file.

    Args:
        out: the new folder.
        version: the adapter.
        settings: the run file; None where only the log is known.
        base: where the base is now, if that is elsewhere.
        personal: what stays on a device, float32[p], if that is merged, too.
    """
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
    layout, vector = peft_vector(manifest, version.adapter, personal)
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
