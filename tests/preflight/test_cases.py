"""Inputs that users had trouble with (`tests/cases`), each with what a check must say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from echelon.config.run import load
from echelon.preflight.check import check
from echelon.preflight.findings import Checked
from echelon.training.data.sources import RawDocument, read_source

CASES = Path(__file__).resolve().parents[1] / "cases"
MESSAGES = {"messages_field": "messages"}


@pytest.fixture(autouse=True)
def in_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)


def checked(source: str, devices: int = 3, **fields: Any) -> Checked:
    """What a check finds where `base.yaml` has this source."""
    settings = load(CASES / "base.yaml")
    (boundary,) = settings.boundaries
    data = boundary.data.model_copy(update={"source": source, **fields})
    changed = boundary.model_copy(update={"data": data, "devices": devices})
    return check(settings.model_copy(update={"boundaries": (changed,)}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "fields", "documents"),
    [
        ("jsonl:plain.jsonl", {}, 40),
        ("jsonl:chat_tool2.jsonl", MESSAGES, 61),
        ("jsonl:chat_parts.jsonl", MESSAGES, 61),
        ("jsonl:chat_sharegpt.jsonl", {"messages_field": "conversations"}, 60),
        ("jsonl:long300.jsonl.gz", {"prompt_field": "q", "answer_field": "a"}, 400),
        ("jsonl:skew.jsonl.gz", {}, 21),
    ],
)
def test_what_can_be_read_is_read_whole(source: str, fields: dict[str, Any], documents: int) -> None:
    found = checked(source, **fields)
    assert found.faults == []
    facts = found.sources["a"].facts
    assert (facts.documents, facts.left_out) == (documents, {})
    assert facts.training_tokens > 0
    assert facts.validation_tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "fields", "said"),
    [
        (
            "jsonl:roles/roles.jsonl",
            MESSAGES,
            "30 of 40 documents would be left out (unknown role 'Assistant'",
        ),
        ("jsonl:chat_sysonly_all.jsonl", MESSAGES, "no turn of an assistant: 60"),
        ("jsonl:chat_tool.jsonl", MESSAGES, "it has no chat template, so it has no form for tool calls"),
        ("text:bom-text/*.txt", {}, "1 document(s) cannot be split"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_reason(source: str, fields: dict[str, Any], said: str) -> None:
    faults = [str(fault) for fault in checked(source, **fields).faults]
    assert faults
    assert all(fault.startswith("boundary a: ") for fault in faults)
    assert said in faults[0]


def documents(**fields: Any) -> list[RawDocument]:
    """What is read where `base.yaml` has these fields."""
    return read_source(load(CASES / "base.yaml").boundaries[0].data.model_copy(update=fields))


def test_a_byte_order_mark_is_no_text() -> None:
    (document,) = documents(source="text:bom-text/*.txt")
    raw = Path("bom-text/t0.txt").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    assert document.content == raw[3:].decode()


def test_half_of_a_surrogate_pair_is_replaced_in_a_text() -> None:
    first, *_ = documents(source="jsonl:surrogate/sur.jsonl")
    assert first.content == "broken \ufffd emoji"


def test_half_of_a_surrogate_pair_is_replaced_in_a_domain() -> None:
    read = documents(source="jsonl:surrogate/surid.jsonl", domain_field="dom")
    assert [document.domain for document in read] == ["x\ufffd", "y", "y"]
