"""Findings in SARIF 2.1.0 (OASIS), the format in which analysis tools hand their results to others.

Every code is a rule. A finding's place is a record of a topic, which is no line of a file: it stands as a logical
location `topic@offset`, and the topic as an artifact, so that viewers which know files alone have one to name.
"""

from __future__ import annotations

import hashlib
import string

from echelon.audit.findings import MEANING, Code, Finding, Report, Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION = "2.1.0"
_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_CODES = list(Code)


def as_sarif(report: Report, version: str) -> dict[str, object]:
    """The report as JSON values.

    Args:
        report: of a verification.
        version: of this program.
    """
    return {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "echelon audit",
                        "version": version,
                        "rules": [_rule(code) for code in _CODES],
                    }
                },
                "invocations": [{"executionSuccessful": True, "exitCode": 0 if report.ok else 1}],
                "results": [_result(report, finding) for finding in report.findings],
                "properties": {
                    "ok": report.ok,
                    "errors": report.errors,
                    "findingsLeftOut": report.left_out,
                    "run": report.run.hex(),
                    "genesisSha256": report.genesis_sha256.hex(),
                    "adapterSha256": report.adapter_sha256.hex(),
                },
            }
        ],
    }


def _rule(code: Code) -> dict[str, object]:
    return {"id": code.value, "shortDescription": {"text": MEANING[code]}}


def _result(report: Report, finding: Finding) -> dict[str, object]:
    result: dict[str, object] = {
        "ruleId": finding.code.value,
        "ruleIndex": _CODES.index(finding.code),
        "level": _LEVEL[finding.severity],
        "message": {"text": finding.detail},
        "partialFingerprints": {"echelonFinding/v1": _fingerprint(report, finding)},
    }
    if finding.topic:
        name = finding.topic if finding.offset is None else f"{finding.topic}@{finding.offset}"
        result["locations"] = [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(finding.topic)}},
                "logicalLocations": [{"fullyQualifiedName": name, "kind": "resource"}],
            }
        ]
    return result


def _fingerprint(report: Report, finding: Finding) -> str:
    """The same for the same finding of the same run, however often it is verified."""
    parts = [report.run, finding.code.value, finding.topic, finding.offset, finding.detail]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _uri(topic: str) -> str:
    """The topic as a relative reference (RFC 3986): all but unreserved characters escaped."""
    plain = f"{string.ascii_letters}{string.digits}-._~"
    return "".join(
        c if c in plain else "".join(f"%{byte:02X}" for byte in c.encode("utf-8", "surrogatepass"))
        for c in topic
    )
