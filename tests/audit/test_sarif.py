"""The structure that SARIF 2.1.0 asks for, checked from its specification (sections 3.13 to 3.51)."""

from __future__ import annotations

import json
import re

import pytest

from echelon.audit.findings import MEANING, Code, Finding, Report, Severity
from echelon.audit.sarif import as_sarif
from echelon.audit.verify import verify
from tests.audit.synthetic import scenario

LEVELS = {"none", "note", "warning", "error"}


def check(log: dict[str, object]) -> None:
    """Required properties, types, and references between them; nothing that the specification does not know."""
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    assert str(log["$schema"]).startswith("https://")
    runs = log["runs"]
    assert isinstance(runs, list)
    for run in runs:
        assert set(run) == {"tool", "invocations", "results", "properties"}
        driver = run["tool"]["driver"]
        assert set(driver) == {"name", "version", "rules"}
        assert driver["name"]
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        for rule in driver["rules"]:
            assert set(rule) == {"id", "shortDescription"}
            assert set(rule["shortDescription"]) == {"text"}
            assert re.fullmatch(r"[A-Z].*\.", rule["shortDescription"]["text"]), "a sentence"
        for invocation in run["invocations"]:
            assert set(invocation) == {"executionSuccessful", "exitCode"}
            assert isinstance(invocation["executionSuccessful"], bool)
        assert isinstance(run["properties"], dict)
        for result in run["results"]:
            assert set(result) - {"locations"} == {
                "ruleId",
                "ruleIndex",
                "level",
                "message",
                "partialFingerprints",
            }
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in LEVELS
            assert isinstance(result["message"]["text"], str)
            assert result["message"]["text"]
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
            for location in result.get("locations", ()):
                assert set(location) == {"physicalLocation", "logicalLocations"}
                uri = location["physicalLocation"]["artifactLocation"]["uri"]
                assert re.fullmatch(r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})+", uri), "RFC 3986, one segment"
                for logical in location["logicalLocations"]:
                    assert set(logical) == {"fullyQualifiedName", "kind"}


def of(report: Report) -> dict[str, object]:
    """As it is read again from its text."""
    found: dict[str, object] = json.loads(json.dumps(as_sarif(report, "0.1.0")))
    return found


def test_every_code_has_its_meaning() -> None:
    assert set(MEANING) == set(Code), "say in MEANING what a new code means"


@pytest.mark.parametrize("spoil", [False, True])
def test_findings_of_a_run_stand_in_it(spoil: bool) -> None:
    topics = scenario().topics
    if spoil:
        topics["delta.a"] = topics["delta.a"][1:]
    report = verify(topics)
    log = of(report)
    check(log)
    (run,) = log["runs"]  # type: ignore[misc]
    assert [(one["ruleId"], one["message"]["text"]) for one in run["results"]] == [
        (found.code.value, found.detail) for found in report.findings
    ]
    assert run["invocations"][0]["exitCode"] == (1 if spoil else 0)
    assert {one["level"] for one in run["results"]} >= ({"error"} if spoil else {"note"})


def test_every_code_and_severity_and_hostile_names_keep_the_structure() -> None:
    report = Report()
    for code in Code:
        for severity in Severity:
            for topic in ("", "delta.a", "../x y", "\ud800\x00", "global/✓"):
                report.findings.append(Finding(code, severity, topic, 3 if topic else None, "what is wrong"))
    log = of(report)
    check(log)
    prints = {one["partialFingerprints"]["echelonFinding/v1"] for one in log["runs"][0]["results"]}  # type: ignore[index]
    assert len(prints) == len(Code) * 5, "a fingerprint is of code, place and words"
