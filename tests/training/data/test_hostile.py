"""Inputs that go wrong with people's data: each is read as a person expects, or named in a sentence."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.sources import LeftOut, read_source

ROWS = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(6))
SIX = [f"row {number}" for number in range(6)]


def packed(text: str) -> bytes:
    """The text as gzip writes it; without the time, so that every test process has the same cases."""
    return gzip.compress(text.encode(), mtime=0)


def texts(source: str, **fields: str) -> list[Any]:
    return [document.content for document in read_source(DataSettings(source=source, **fields), LeftOut())]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("semicolons.csv", "text;n\nhello, you;1\nx;2\n", ["hello, you", "x"]),
        ("tabs.csv", "n\ttext\n1\thello\n2\tx\n", ["hello", "x"]),
        ("windows.csv", b'text,n\r\n"two\r\nlines",1\r\nx,2\r\n', ["two\r\nlines", "x"]),
        ("old-mac.csv", b"text,n\rhello,1\rx,2\r", ["hello", "x"]),
        ("bom.csv", b"\xef\xbb\xbftext,n\nhello,1\nx,2\n", ["hello", "x"]),
        ("spaces.csv", " text , n\nhello,1\nx,2\n", ["hello", "x"]),
        ("blank.csv", "text,n\n\nhello,1\n\nx,2\n", ["hello", "x"]),
        ("LOUD.TSV", "text\tn\nhello\t1\nx\t2\n", ["hello", "x"]),
        ("windows.jsonl", ROWS.replace("\n", "\r\n"), SIX),
        ("separators.jsonl", '{"text": "a\u2028b"}\n{"text": "c\x85d"}\n', ["a\u2028b", "c\x85d"]),
        ("array.json", json.dumps(list(map(json.loads, ROWS.splitlines()))), SIX),
        ("lines-of-array.json", json.dumps(list(map(json.loads, ROWS.splitlines())), indent=1), SIX),
        ("array-bom.json", b'\xef\xbb\xbf[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ("not-packed.jsonl.gz", ROWS, SIX),
        ("packed.jsonl", packed(ROWS), SIX),
        ("LOUD.JSONL.GZ", packed(ROWS), SIX),
        ("packed-array.json.gz", packed('[{"text": "a"}, {"text": "b"}]'), ["a", "b"]),
    ],
)
def test_it_is_read_as_a_person_expects(
    name: str, data: str | bytes, expected: list[str], tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    kind = "csv" if "csv" in name or "TSV" in name else "jsonl"
    assert texts(f"{kind}:{file}") == expected
    assert texts(f"{kind}:{tmp_path}") == expected, "and so it is as one file of a folder"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("twice.csv", "text,text\na,b\n", "its first line names the field 'text' twice"),
        ("open.csv", 'text,n\n"never closed,1\nx,2\n', "is not CSV"),
        ("short.csv", "text,n\na\nb,2\n", "short.csv:2 has another number of fields"),
        ("empty.csv", "", "has no document to train on"),
        ("latin.csv", "text\ncafé\n".encode("latin-1"), "is not UTF-8 text"),
        ("utf16.csv", "text\na\n".encode("utf-16"), "is UTF-16 text, and UTF-8 is read; convert it"),
        ("utf16.jsonl", ROWS.encode("utf-16"), "is UTF-16 text"),
        ("utf16be.jsonl", b"\xfe\xff" + ROWS.encode("utf-16-be"), "is UTF-16 text"),
        ("utf32.txt", "a".encode("utf-32"), "is UTF-32 text"),
        ("half.jsonl.gz", packed(random.Random(0).randbytes(5000).hex())[:3000], "is no whole gzip file"),
        ("begun.jsonl.gz", packed("")[:8], "is no whole gzip file"),
        ("crc.jsonl.gz", packed(ROWS)[:-8] + b"12345678", "is no whole gzip file"),
        ("number.jsonl", '{"text": 3}\n', "number.jsonl:1: field 'text' is a number, expected text"),
        ("null.jsonl", '{"text": null}\n', "field 'text' is null, expected text"),
        ("list.jsonl", '{"text": ["a"]}\n', "field 'text' is a list, expected text"),
        ("object.jsonl", '{"text": {"a": 1}}\n', "field 'text' is an object with fields, expected text"),
        ("true.jsonl", '{"text": true}\n', "field 'text' is true or false, expected text"),
        ("row.jsonl", "null\n", "row.jsonl:1 is not an object with fields"),
        (
            "twice.jsonl",
            '{"text": "a", "text": "b"}\n',
            "twice.jsonl:1 cannot be read as JSON: the field 'text' stands",
        ),
        ("deep.jsonl", '{"text": ' + "[" * 90_000 + "\n", "deep.jsonl:1 is n"),
        ("digits.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}\n", "a number of thousands of digits"),
        ("object.json", json.dumps({"data": []}, indent=1), "one object a line is read, or an array"),
        ("array.json", '[{"text": "a"}, 3]', "array.json:2 is not an object with fields"),
        ("half.json", '[{"text": "a"},', "half.json is not JSON"),
    ],
)
def test_it_is_named_with_what_to_do(name: str, data: str | bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    kind = "text" if name.endswith(".txt") else "csv" if name.endswith(".csv") else "jsonl"
    with pytest.raises(ConfigError) as raised:
        texts(f"{kind}:{file}")
    assert said in str(raised.value)
    assert name in str(raised.value)
    assert "NoneType" not in str(raised.value)


def test_a_row_of_more_than_any_row_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.training.data.sources.MAX_ROW_BYTES", 1000)
    for name, text in (("line.jsonl", f'{{"text": "{"x" * 2000}"}}\n'), ("array.json", f'["{"x" * 2000}"]')):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=f"{name}.* 1000 bytes"):
            texts(f"jsonl:{tmp_path / name}")


def looped(folder: Path) -> Path:
    (folder / "again").symlink_to(folder)
    return folder


def seen_twice(folder: Path) -> Path:
    (folder / "z.txt").symlink_to(folder / "a.txt")
    return folder


def with_hidden(folder: Path) -> Path:
    (folder / ".git").mkdir()
    (folder / ".git" / "c.txt").write_text("c")
    (folder / ".d.txt").write_text("d")
    return folder


@pytest.mark.parametrize("made", [looped, seen_twice, with_hidden])
@pytest.mark.parametrize("pattern", ["", "/**/*.txt"])
def test_a_file_is_read_once_and_hidden_ones_are_not(
    made: Callable[[Path], Path], pattern: str, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert texts(f"text:{made(tmp_path)}{pattern}") == ["a", "b"]


def test_links_and_pipes_that_are_no_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    for source in (tmp_path, tmp_path / "*.txt"):
        with pytest.raises(ConfigError, match=r"gone\.txt is a link that leads nowhere"):
            texts(f"text:{source}")
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(ConfigError, match="is a link that leads nowhere"):
        texts(f"text:{tmp_path / 'self'}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no regular file and no folder"):
        texts(f"text:{tmp_path / 'pipe'}")


def test_brackets_are_a_name_first_and_then_a_pattern(tmp_path: Path) -> None:
    for name in ("[a].txt", "a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert texts(f"text:{tmp_path}/[a].txt") == ["[a].txt"]
    assert texts(f"text:{tmp_path}/[ab].txt") == ["a.txt", "b.txt"]


def test_parquet_that_will_not_do_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    made = {
        "field 'text' is an object with fields": pa.table({"text": [{"a": "x"}] * 3}),
        "field 'text' is bytes": pa.table({"text": [b"a", b"\xff"]}),
        "has no field 'text'; it has: other": pa.table({"other": ["a", "b"]}),
        "has two columns of one name": pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        "has no document": pa.table({"text": pa.array([], pa.string())}),
    }
    for said, table in made.items():
        write_table(table, tmp_path / "x.parquet")
        with pytest.raises(ConfigError) as raised:
            texts(f"parquet:{tmp_path / 'x.parquet'}")
        assert said in str(raised.value)
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        texts(f"parquet:{tmp_path / 'x.parquet'}")
    write_table(pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}), tmp_path / "x.parquet")
    assert texts(f"parquet:{tmp_path / 'x.parquet'}") == ["a", "b"]
