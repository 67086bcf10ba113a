"""What users point at: files as they are found, rows as they come, and a reason for each that is left out."""

from __future__ import annotations

import gzip
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.conversations import Completion, Conversation, Turn
from echelon.training.data.sources import EMPTY, NO_TEXT, LeftOut, RawDocument, read_source

ASKED = {"role": "user", "content": "open?"}
SAID = {"role": "assistant", "content": "open."}


def rows(folder: Path, *made: Any, name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in made))
    return f"jsonl:{folder / name}"


def read(source: str, **fields: Any) -> tuple[list[RawDocument], LeftOut]:
    left_out = LeftOut()
    return read_source(DataSettings(source=source, **fields), left_out), left_out


def turns(document: RawDocument) -> list[tuple[str, str | None]]:
    content = document.content.turns if isinstance(document.content, Conversation) else document.content
    assert not isinstance(content, str | Completion)
    return [(turn.role, turn.content) for turn in content]


# ---- files ---------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfthe valve")
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    documents, left_out = read(f"text:{tmp_path}/*.txt", max_left_out=0.5)
    assert [one.content for one in documents] == ["the valve"]
    assert left_out.rows == {EMPTY: 1}
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert read(f"jsonl:{tmp_path}/rows.jsonl")[0][0].content == "one"
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,kind\none,p\n")
    assert read(f"csv:{tmp_path}/rows.csv", domain_field="kind")[0][0].domain == "p"


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_packed_files_are_unpacked_and_half_of_one_is_named(tmp_path: Path, kind: str) -> None:
    plain = {
        "text": b"valve " * 99,
        "jsonl": b'{"text": "valve"}\n' * 99,
        "csv": b"text\n" + b"valve\n" * 99,
    }[kind]
    packed = gzip.compress(plain)
    path = tmp_path / f"a.{ {'text': 'txt'}.get(kind, kind) }.gz"
    path.write_bytes(packed)
    assert "valve" in str(read(f"{kind}:{path}")[0][0].content)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ConfigError, match=r"a\.\w+\.gz is no whole gzip file"):
        read(f"{kind}:{path}")
    path.write_bytes(plain)  # its bytes say what it is, and not its name
    assert "valve" in str(read(f"{kind}:{path}")[0][0].content)


def test_a_path_is_taken_as_it_stands_before_it_is_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "notes [1].txt").write_text("exact")
    (tmp_path / "notes 1.txt").write_text("pattern")
    assert [one.content for one in read(f"text:{tmp_path}/notes [1].txt")[0]] == ["exact"]


def test_a_folder_means_its_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert [one.content for one in read(f"text:{tmp_path}")[0]] == ["one", "two"]
    with pytest.raises(ConfigError, match=r"no file that ends with \.parquet"):
        read(f"parquet:{tmp_path}")


def test_a_file_name_that_is_no_utf_8_has_an_id_that_is(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    try:
        with open(path, "wb") as file:
            file.write(b"the valve")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    [document] = read(f"text:{tmp_path}/*.txt")[0]
    assert document.id.endswith(r"caf\xe9.txt")
    document.id.encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,kind\none\n", r"rows\.csv:2 has another number of fields"),
        ("text\none,two\n", r"rows\.csv:2 has another number of fields"),
        ('text\n"one\n', r"rows\.csv:\d is not CSV"),
        ("words\none\n", "has no field 'text'"),
    ],
)
def test_a_table_that_is_none_is_named_by_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read(f"csv:{tmp_path}/rows.csv")


def test_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    far = pa.array([3_000_000, 0], pa.int32()).cast(pa.date32())  # the year 10183: no date of Python
    parquet.write_table(pa.table({"text": ["one", "two"], "when": far}), tmp_path / "a.parquet")
    assert [one.content for one in read(f"parquet:{tmp_path}/a.parquet")[0]] == ["one", "two"]
    with pytest.raises(ConfigError, match=r"a\.parquet cannot be read as Parquet"):
        read(f"parquet:{tmp_path}/a.parquet", domain_field="when")
    assert date.max.year == 9999


def test_a_path_that_is_not_there_asks_no_hub() -> None:
    with pytest.raises(ConfigError, match=r"there is no \./nothing here"):
        read("hf:./nothing")


# ---- rows ----------------------------------------------------------------------------------------


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    source = rows(tmp_path, {"text": "a\ud800b", "kind": "\udfff"}, {"text": "fine \U0001f600", "kind": "k"})
    documents, left_out = read(source, domain_field="kind")
    assert [(one.content, one.domain) for one in documents] == [
        ("a\ufffdb", "\ufffd"),
        ("fine \U0001f600", "k"),
    ]
    assert left_out.mended == {NO_TEXT: 1}
    chat = rows(
        tmp_path, {"messages": [ASKED, SAID | {"content": "\ud800", "tool_calls": [{"x": "\ud800"}]}]}
    )
    [document] = read(chat, messages_field="messages")[0]
    assert isinstance(document.content, tuple)
    assert document.content[1] == Turn("assistant", "\ufffd", {"tool_calls": [{"x": "\ufffd"}]})


def test_unknown_roles_are_counted_and_too_many_are_an_error(tmp_path: Path) -> None:
    wrong = {"messages": [ASKED, SAID | {"role": "Assistant"}]}
    source = rows(tmp_path, *[{"messages": [ASKED, SAID]}] * 9, wrong)
    documents, left_out = read(source, messages_field="messages")
    assert len(documents) == 9
    [(reason, count)] = left_out.rows.items()
    assert count == 1
    assert "unknown role 'Assistant'" in reason
    source = rows(tmp_path, {"messages": [ASKED, SAID]}, *[wrong] * 3)
    with pytest.raises(ConfigError, match=r"3 of 4 documents would be left out \(unknown role 'Assistant'"):
        read(source, messages_field="messages")
    assert len(read(source, messages_field="messages", max_left_out=0.8)[0]) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [{"role": "system", "content": "be"}]}, "no turn of an assistant"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": " "}]},
            "no turn of an assistant that has text",
        ),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "a message without content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, SAID]},
            "no text (image)",
        ),
        ({"messages": []}, "no turn of an assistant"),
    ],
)
def test_what_cannot_be_trained_on_has_a_reason(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"messages": [ASKED, SAID]}
    documents, left_out = read(rows(tmp_path, good, row), messages_field="messages", max_left_out=0.5)
    assert len(documents) == 1
    assert [reason in one for one in left_out.rows] == [True]
    with pytest.raises(ConfigError, match="no document to train on") as raised:
        read(rows(tmp_path, row), messages_field="messages")
    assert reason in str(raised.value)


def test_tool_calls_parts_and_further_fields_reach_the_template(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "look", "arguments": {}}}],
    }
    result = {
        "role": "tool",
        "name": "look",
        "content": [{"type": "text", "text": "12 "}, {"type": "text", "text": "bar"}],
    }
    answer = {"role": "assistant", "content": "12 bar", "reasoning_content": "it says so"}
    row = {"messages": [ASKED, call, result, answer], "tools": [{"name": "look"}]}
    [document] = read(rows(tmp_path, row), messages_field="messages")[0]
    assert isinstance(document.content, Conversation)
    assert document.content.tools == [{"name": "look"}]
    assert turns(document) == [
        ("user", "open?"),
        ("assistant", None),
        ("tool", "12 bar"),
        ("assistant", "12 bar"),
    ]
    assert document.content.turns[1].message() == call
    assert document.content.turns[3].fields == {"reasoning_content": "it says so"}


@pytest.mark.parametrize("named", [True, False])
def test_sharegpt_is_read_by_name(tmp_path: Path, named: bool) -> None:
    row = {"conversations": [{"from": "human", "value": "open?"}, {"from": "gpt", "value": "open."}]}
    fields = {"messages_field": "conversations"} if named else {}
    [document] = read(rows(tmp_path, row), **fields)[0]
    assert turns(document) == [("user", "open?"), ("assistant", "open.")]


def test_alpaca_is_read_by_name(tmp_path: Path) -> None:
    source = rows(
        tmp_path,
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
    )
    documents, _ = read(source)
    assert [turns(one)[0][1] for one in documents] == ["Add.\n\n1, 2", "Say hi."]
    assert [turns(one)[1] for one in documents] == [("assistant", "3"), ("assistant", "hi")]


def test_prompts_with_completions_are_read_by_name(tmp_path: Path) -> None:
    source = rows(
        tmp_path,
        {"prompt": "The valve is", "completion": " open."},
        {"prompt": [ASKED], "completion": [SAID], "chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": "The valve is", "completion": " "},
        {"prompt": [ASKED, SAID], "completion": [ASKED]},
    )
    (text, talk), left_out = read(source)
    assert text.content == Completion("The valve is", " open.")
    assert isinstance(talk.content, Conversation)
    assert turns(talk) == [("user", "open?"), ("assistant", "open.")]
    assert (talk.content.first, talk.content.variables) == (1, {"enable_thinking": False})
    assert left_out.rows == {"a completion without text": 1, "no turn of an assistant": 1}
    everything = read(source, loss="all")[0]
    assert [one.content.whole for one in everything] == [True] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"prompt": "a", "completion": [SAID]},
            "prompt is str and completion list, expected two texts",
        ),
        ({"prompt": 3, "completion": None}, "prompt is int and completion NoneType"),
        ({"messages": [ASKED, SAID], "chat_template_kwargs": [1]}, "'chat_template_kwargs' is list"),
    ],
)
def test_a_prompt_or_its_completion_of_another_form_is_named(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=f"rows.jsonl:1: .*{says}"):
        read(rows(tmp_path, row))


def test_a_text_field_is_a_text_whatever_else_there_is(tmp_path: Path) -> None:
    assert read(rows(tmp_path, {"text": "a", "messages": [ASKED, SAID]}))[0][0].content == "a"


def test_empty_rows_are_counted(tmp_path: Path) -> None:
    documents, left_out = read(rows(tmp_path, *[{"text": "a"}] * 5, {"text": ""}))
    assert (len(documents), dict(left_out.rows)) == (5, {EMPTY: 1})
    assert left_out.words() == f"{EMPTY}: 1"


def test_weights_of_answers_are_0_or_1_and_one_is_learned(tmp_path: Path) -> None:
    """As OpenAI's files for fine-tuning have them."""
    kept = {"messages": [ASKED, SAID | {"weight": 0}, ASKED, SAID | {"weight": 1}]}
    none = {"messages": [ASKED, SAID | {"weight": 0}]}
    (document,), left_out = read(rows(tmp_path, kept, none), max_left_out=0.5)
    assert isinstance(document.content, tuple)
    assert [turn.is_learned for turn in document.content] == [False, False, False, True]
    assert left_out.rows == {"no turn of an assistant whose weight is not 0": 1}
    for weight in (0.5, 2, "1", [0]):
        with pytest.raises(ConfigError, match=r"rows\.jsonl:1: a message's weight is .*, expected 0 or 1"):
            read(rows(tmp_path, {"messages": [ASKED, SAID | {"weight": weight}]}))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences are not trained on"),
        ({"prompt": "a", "response": "b"}, "it has: prompt, response. Name what is read: data.text_field,"),
    ],
)
def test_rows_of_other_fields_are_refused_with_what_to_set(
    row: dict[str, str], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:1 has no field 'text'.*{says}"):
        read(rows(tmp_path, row))
