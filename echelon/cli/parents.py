"""Earlier runs: what a new run starts from, and the chain of them that an audit shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.findings import Code, Finding, ParentFacts, Report, Severity
from echelon.config.reading import read_file
from echelon.errors import ConfigError
from echelon.laws.rules import Allowed
from echelon.messages.adapter import CARD_FILE, CONFIG_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE, adapter_digest
from echelon.report.card import ADAPTER, BASE, GENESIS, MAX_CARD_BYTES
from echelon.sources.exchange import MAX_FILE_BYTES, opened

if TYPE_CHECKING:
    from echelon.compute.warm_start import Parent


def load_parent(source: str, rules: Allowed) -> Parent:
    """What `--from` names: a finished run, which is verified first, or a folder with an adapter of peft.

    Args:
        source: a run folder or anything else that an audit reads, or a folder with `adapter_config.json`.
        rules: users' own classes that may run, by name.

    Raises:
        ConfigError: it is neither, it was not closed, or it does not verify.
    """
    from echelon.compute.warm_start import Parent  # which a verification does without

    if (Path(source) / CONFIG_FILE).is_file():
        return _from_folder(Path(source))
    verified = _verified(source, rules)
    report, last = verified.report, verified.last
    if not report.ok or last is None:
        first = next(finding for finding in report.findings if finding.severity is Severity.ERROR)
        advice = "let it end first" if first.code is Code.OPEN else "start from a run that verifies"
        raise ConfigError(f"--from {source}: {first.detail}; {advice}")
    manifest = last.manifest
    return Parent(
        source=source,
        adapter=last.adapter,
        layout=manifest.adapter_layout(),
        config=json.loads(manifest.adapter_config),
        genesis_sha256=report.genesis_sha256.hex(),
        model_sha256=manifest.model_sha256,
        labels=manifest.labels,
        kind=manifest.adapter,
    )


def _from_folder(folder: Path) -> Parent:
    """An adapter that lies in a folder. Which run it is of, and which base, a card of ours says, if there is one."""
    from echelon.compute.warm_start import Parent, read_weights

    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise ConfigError(
            f"--from {folder}: {WEIGHTS_FILE} is missing; export the adapter again, as safetensors"
        )
    layout, adapter = read_weights(read_file(weights, "adapter file", MAX_FILE_BYTES), str(weights))
    config = adapter_config_in(folder, f"--from {folder}")
    card = b""
    if (folder / CARD_FILE).is_file():
        card = read_file(folder / CARD_FILE, "model card", MAX_CARD_BYTES)
    return Parent(str(folder), adapter, layout, config, **_known(card, adapter_digest(adapter).hex()))


def adapter_config_in(folder: Path, where: str) -> dict[str, Any]:
    """PEFT's configuration of the adapter in a folder.

    Args:
        folder: has `adapter_config.json`.
        where: what named the folder, for errors.

    Raises:
        ConfigError: it cannot be read, or is no map of settings in JSON.
    """
    text = read_file(folder / CONFIG_FILE, "adapter configuration", MAX_CONFIG_BYTES)
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {CONFIG_FILE} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: {CONFIG_FILE} is no map of settings")
    return config


def _known(card: bytes, digest: str) -> dict[str, Any]:
    """What a card of ours says of the adapter's run.

    Of a kind that is trained in other numbers than the file holds, no commit has the file's digest: then the base alone
    is taken from the card.
    """
    text = card.decode("utf-8", "replace")
    found = {"genesis_sha256": GENESIS.search(text), "model_sha256": BASE.search(text)}
    trained = ADAPTER.search(text)
    if trained is not None and trained[1] != digest:
        del found["genesis_sha256"]
    return {name: line[1] for name, line in found.items() if line is not None}


@dataclass(frozen=True)
class _Verified:
    """A run that was verified: what was found, the commit of each adapter's digest, and the last adapter."""

    report: Report
    commits: dict[str, int]
    last: DerivedAdapter | None


def _verified(source: str, rules: Allowed) -> _Verified:
    commits: dict[str, int] = {}
    last = None
    with opened(source) as opened_source:
        verifier = opened_source.verifier(rules=rules)
        for last in verifier.run():
            commits[last.sha256.hex()] = last.commit
    return _Verified(verifier.report, commits, last)


def check_chain(report: Report, sources: Sequence[str], rules: Allowed) -> None:
    """Verify the earlier runs of a run, and add to its report what is wrong with them.

    Args:
        report: of the run itself; its chain and its findings grow.
        sources: its parent, the parent's parent, and so on.
        rules: users' own classes that may run, by name.

    Raises:
        ConfigError: one of them cannot be read, or is given although no run names it.
    """
    terms = report.parent
    for source in sources:
        if terms is None:
            raise ConfigError(
                f"--parent {source}: the run before it starts from no other run; leave --parent out"
            )
        if (Path(source) / CONFIG_FILE).is_file():
            given = _from_folder(Path(source))
            if adapter_digest(given.adapter).hex() != terms.adapter_sha256:
                _error(report, f"{source} is another adapter than the one that the run starts from")
            report.chain.append(ParentFacts(source, b"", None, 0))
            terms = None
            continue
        verified = _verified(source, rules)
        before, commit = verified.report, verified.commits.get(terms.adapter_sha256)
        if not before.ok:
            first = next(finding for finding in before.findings if finding.severity is Severity.ERROR)
            _error(report, f"{source} does not verify, {before.errors} errors; the first: {first}")
        elif terms.genesis_sha256 and terms.genesis_sha256 != before.genesis_sha256.hex():
            _error(
                report,
                f"{source} has genesis {before.genesis_sha256.hex()}, and the run names {terms.genesis_sha256}",
            )
        elif commit is None:
            _error(report, f"no commit of {source} has the adapter that the run starts from")
        report.chain.append(ParentFacts(source, before.genesis_sha256, commit, len(before.commits)))
        terms = before.parent


def _error(report: Report, detail: str) -> None:
    report.findings.append(Finding(Code.PARENT, Severity.ERROR, "", None, detail))
    report.errors += 1


def lines_of(report: Report) -> list[str]:
    """The chain for a person: one line for each earlier run, and one for the parent that was not given."""
    if report.parent is None:
        return []
    lines = []
    for facts in report.chain:
        which = "an adapter" if facts.commit is None else f"commit {facts.commit} of {facts.commits}"
        genesis = f", genesis {facts.genesis_sha256.hex()}" if facts.genesis_sha256 else ""
        lines.append(f"parent   {which} of {facts.source}{genesis}")
    if not report.chain:
        genesis = report.parent.genesis_sha256 or "not known"
        lines.append(f"parent   genesis {genesis}, adapter {report.parent.adapter_sha256}")
        lines.append("         (named by the signed terms; verify it, too, with --parent SOURCE)")
    return lines


def plain_chain(report: Report) -> dict[str, object]:
    """The chain for machines: what the terms name, and what was verified; empty for a run without a parent."""
    if report.parent is None:
        return {}
    return {
        "parent": report.parent.model_dump(),
        "chain": [
            {
                "source": facts.source,
                "genesis_sha256": facts.genesis_sha256.hex(),
                "commit": facts.commit,
                "commits": facts.commits,
            }
            for facts in report.chain
        ],
    }
