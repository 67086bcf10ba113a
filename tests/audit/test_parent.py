"""A run that names what it started from: its terms, and what the audit holds against them."""

from __future__ import annotations

import pytest

from echelon.audit.findings import Code, Report, Severity
from echelon.audit.incremental import verify_new
from echelon.audit.verify import verify
from echelon.messages.adapter import adapter_digest
from echelon.messages.manifest import ParentTerms, RunManifest
from tests.audit.synthetic import Exchange, scenario, terms

GENESIS = "cd" * 32


def started(adapter_sha256: str) -> Exchange:
    parent = ParentTerms(genesis_sha256=GENESIS, adapter_sha256=adapter_sha256)
    return scenario(terms().model_copy(update={"parent": parent}))


def initial() -> str:
    return adapter_digest(Exchange(terms()).core.adapter).hex()


def errors(report: Report) -> list[Code]:
    return [found.code for found in report.findings if found.severity is Severity.ERROR]


def test_a_parent_that_is_named_truly_is_reported() -> None:
    report = verify(started(initial()).topics)
    assert errors(report) == []
    assert report.parent == ParentTerms(genesis_sha256=GENESIS, adapter_sha256=initial())


def test_another_adapter_than_the_parents_is_found() -> None:
    report = verify(started("ef" * 32).topics)
    assert errors(report) == [Code.PARENT]


def test_an_incremental_verification_reports_the_parent_too() -> None:
    topics = started(initial()).topics

    def open_from(topic: str, start: int) -> object:
        return iter([record for record in topics[topic] if record.offset >= start])

    first = verify_new(topics, open_from, None, reader="test", allow_open=True)  # type: ignore[arg-type]
    assert first.progress is not None
    again = verify_new(topics, open_from, first.progress, reader="test", allow_open=True)  # type: ignore[arg-type]
    assert again.began > 0
    assert again.report.parent == first.report.parent is not None


def test_terms_without_a_parent_have_the_bytes_that_they_had() -> None:
    assert b"parent" not in terms().canonical()
    with_one = terms().model_copy(update={"parent": ParentTerms(adapter_sha256="ef" * 32)})
    assert RunManifest.model_validate_json(with_one.canonical()) == with_one


@pytest.mark.parametrize("text", ["ab", "AB" * 32, "cd" * 33])
def test_a_digest_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="genesis_sha256"):
        ParentTerms(genesis_sha256=text, adapter_sha256="ef" * 32)
