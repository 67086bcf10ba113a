"""Replay: every global adapter of a run, derived again from the exchange's topics alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.findings import Code, Finding, Severity
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.verify import Verifier
from echelon.errors import AuditError
from echelon.laws.rules import Allowed


def replay(
    topics: Mapping[str, Iterable[LogRecord | Damaged]],
    *,
    genesis: bytes | None = None,
    rules: Allowed | None = None,
    findings: Iterable[Finding] = (),
) -> Iterator[DerivedAdapter]:
    """Yield the adapters of genesis and of every commit, in order, each checked before it is yielded.

    A run that is still open is replayed as far as it goes.

    Args:
        topics: every topic with its records in offset order.
        genesis: the pinned SHA-256 of the genesis record's envelope.
        rules: users' own classes that may run, as of `Verifier`.
        findings: about the source itself, as of `Verifier`; files beside the logs are none of a replay's concern.

    Raises:
        AuditError: the first error among the findings, as soon as it is found.
    """
    kept = [finding for finding in findings if finding.code is not Code.UNEXPECTED_FILE]
    verifier = Verifier(topics, genesis=genesis, allow_open=True, rules=rules, findings=kept)
    for version in verifier.run():
        _raise_first(verifier)
        yield version
    _raise_first(verifier)


def _raise_first(verifier: Verifier) -> None:
    if not verifier.report.ok:
        first = next(finding for finding in verifier.report.findings if finding.severity is Severity.ERROR)
        raise AuditError(f"the log does not verify: {first}")
