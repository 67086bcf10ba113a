"""Sources made to harm whoever audits them: each ends with a sentence, within bounds, and what lies beside is found."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from echelon.sources.exchange import MAX_NAMED
from tests.audit.synthetic import scenario
from tests.audit.test_cli import invoke, write_run

EXCHANGE = scenario()
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("sound") / "run", EXCHANGE)


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def log_of(run: Path) -> Path:
    return run / "brokers" / "exchange.sqlite"


def change(path: Path, *statements: str, schema: bool = False) -> None:
    """Write past the bus: with `schema`, into what SQLite knows of its own tables too."""
    database = sqlite3.connect(path, isolation_level=None)
    if schema:
        database.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        database.execute(statement)
    database.close()


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output


def errors(source: Path, *codes: str) -> list[dict[str, object]]:
    """The errors of a source that is read to its end."""
    result = invoke("verify", source, "--json")
    assert result.exit_code == 1, result.output
    found = [f for f in json.loads(result.output)["findings"] if f["severity"] == "error"]
    assert {f["code"] for f in found} == set(codes)
    return found


STRANGE_SCHEMAS: dict[str, tuple[str, ...]] = {
    "a view in place of the records": (
        "ALTER TABLE records RENAME TO kept",
        f"CREATE VIEW records AS {ENDLESS} SELECT 'global' topic, 0 part, i off, x'' key, '[]' headers, 0 ts, "
        "x'' value FROM n",
    ),
    "a view in place of the topics": (
        "ALTER TABLE topics RENAME TO kept",
        f"CREATE VIEW topics AS {ENDLESS} SELECT 'delta.' || i topic, 1 partitions FROM n",
    ),
    "a view beside": (f"CREATE VIEW more AS {ENDLESS} SELECT i FROM n",),
    "a trigger": ("CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",),
    "a table beside": ("CREATE TABLE more(x)",),
    "an index beside": ("CREATE INDEX more ON records(value)",),
    "an index with an expression": ("CREATE INDEX more ON records(length(value))",),
    "a virtual table": ("CREATE VIRTUAL TABLE more USING fts5(x)",),
    "a column with a default that computes": (
        "DROP TABLE topics",
        "CREATE TABLE topics(topic TEXT, partitions INTEGER, x DEFAULT (randomblob(100000000)))",
    ),
    "a generated column": (
        "ALTER TABLE topics ADD COLUMN x GENERATED ALWAYS AS (zeroblob(100000000)) VIRTUAL",
    ),
    "no tables": ("DROP TABLE topics", "DROP TABLE records"),
    "another format": ("PRAGMA user_version = 2",),
    "another application": ("PRAGMA application_id = 7",),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGE_SCHEMAS)
def test_a_log_with_anything_but_our_two_tables_is_not_read(run: Path, name: str) -> None:
    change(log_of(run), *STRANGE_SCHEMAS[name])
    refused(invoke("verify", run), "not a log of Echelon")
    refused(invoke("verify", log_of(run)), "not a log of Echelon")


def test_endless_views_are_not_even_parsed(run: Path) -> None:
    view = (
        f"INSERT INTO sqlite_master(type, name, tbl_name, rootpage, sql) {ENDLESS} "
        "SELECT 'view', 'v' || i, 'v' || i, 0, 'CREATE VIEW v' || i || ' AS SELECT 1' FROM n LIMIT 200000"
    )
    change(log_of(run), view, schema=True)
    assert log_of(run).stat().st_size > 8 << 20
    refused(invoke("verify", run))


DAMAGED_TABLES: dict[str, tuple[str, str]] = {
    "text for a number of partitions": (
        "UPDATE topics SET partitions = 'many' WHERE topic = 'global'", "not names and numbers",
    ),
    "a real number of partitions": ("UPDATE topics SET partitions = 1.5", "not names and numbers"),
    "no number of partitions": ("UPDATE topics SET partitions = 0", "0 partitions"),
    "too many partitions": ("UPDATE topics SET partitions = 1 << 40", "1099511627776 partitions"),
    "a negative number of partitions": ("UPDATE topics SET partitions = -1", "-1 partitions"),
    "a blob for a topic": ("INSERT INTO topics VALUES (x'00ff', 1)", "not names and numbers"),
    "a path for a topic": ("INSERT INTO topics VALUES ('../../etc/x', 1)", "is not allowed"),
    "an absolute path for a topic": ("INSERT INTO topics VALUES ('/etc/x', 1)", "is not allowed"),
    "a topic called ..": ("INSERT INTO topics VALUES ('..', 1)", "is not allowed"),
    "a topic that is no Unicode": ("INSERT INTO topics VALUES (CAST(x'ff41' AS TEXT), 1)", ""),
    "too many topics": (f"INSERT INTO topics {ENDLESS} SELECT 't' || i, 1 FROM n LIMIT 9999", "more than 4096"),
    "text for an offset": ("UPDATE records SET off = 'x' || off", "an offset that is str"),
    "a real offset": ("UPDATE records SET off = off + 0.5", "an offset that is float"),
    "a negative offset": ("UPDATE records SET off = off - 10000", "offset -"),
    "an offset past all bounds": ("UPDATE records SET off = off + 9223372036854775000", "has offset"),
    "text for a partition": ("UPDATE records SET part = 'p'", "without a topic's name or partition"),
    "a blob for a record's topic": (
        "UPDATE records SET topic = x'01' WHERE off = 0 AND topic = 'global'", "without a topic's name",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED_TABLES)
def test_a_value_of_another_type_ends_with_a_sentence(run: Path, name: str) -> None:
    statement, word = DAMAGED_TABLES[name]
    change(log_of(run), statement)
    refused(invoke("verify", run), word)


DAMAGED_RECORDS: dict[str, str] = {
    "nested headers": "headers = '" + "[" * 100_000 + "'",
    "a header's name with half of a surrogate pair": r"""headers = '[["\ud800","00"]]'""",
    "headers that are a number": "headers = 7",
    "a key that is text": "key = 'x'",
    "a value that is a number": "value = 7",
    "a time that is text": "ts = 'now'",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED_RECORDS)
def test_a_damaged_record_is_a_finding_at_its_offset(run: Path, name: str) -> None:
    change(log_of(run), f"UPDATE records SET {DAMAGED_RECORDS[name]} WHERE topic = 'delta.b' AND off = 1")
    found = invoke("verify", run, "--json")
    assert found.exit_code == 1
    listed = [(f["code"], f["topic"], f["offset"]) for f in json.loads(found.output)["findings"]]
    assert ("unreadable", "delta.b", 1) in listed


def test_a_record_larger_than_any_ends_with_a_sentence_or_a_finding(run: Path) -> None:
    change(log_of(run), "UPDATE records SET value = zeroblob(50000000) WHERE topic = 'delta.b' AND off = 1")
    found = invoke("verify", run, "--json")
    assert found.exit_code == 1
    assert "unreadable" in {f["code"] for f in json.loads(found.output)["findings"]}


def test_undeclared_topics_and_partitions_are_found(run: Path) -> None:
    first = "FROM records WHERE topic = 'global' AND part = 0 AND off = 0"
    row = f"INSERT INTO records SELECT '{{}}', {{}}, 0, key, headers, ts, value {first}"
    change(log_of(run), row.format("global", 7), row.format("hidden", 0), row.format("../x", 0))
    found = errors(run, "unexpected-partition", "unexpected-topic")
    assert {f["topic"] for f in found} == {"global", ""}
    assert {word for word in ("'hidden'", "'../x'") if any(word in str(f["detail"]) for f in found)} == {
        "'hidden'", "'../x'",
    }  # fmt: skip
    assert invoke("export", run, run / "copy").exit_code == 1


def test_a_topic_with_more_partitions_is_found_without_looking_at_each(run: Path) -> None:
    change(log_of(run), "UPDATE topics SET partitions = 65536")
    assert len(errors(run, "unexpected-partition")) == 3
    assert invoke("replay", run).exit_code == 1


def test_many_undeclared_partitions_are_counted_not_listed(run: Path) -> None:
    row = "SELECT 'global', i, 0, x'', '[]', 0, x'' FROM n LIMIT 500"
    change(log_of(run), f"INSERT INTO records {ENDLESS} {row}")
    assert MAX_NAMED <= len(errors(run, "unexpected-partition")) <= MAX_NAMED + 1


def test_an_empty_topic_that_the_run_does_not_declare_is_found(run: Path) -> None:
    change(log_of(run), "INSERT INTO topics VALUES ('delta.stranger', 1)")
    (found,) = errors(run, "unexpected-topic")
    assert (found["topic"], found["offset"]) == ("delta.stranger", None)


# ---- what lies beside the logs ----------------------------------------


def pickle(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


def link(folder: Path) -> None:
    (folder / "more.safetensors").symlink_to("/etc/passwd")


def linked_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "more")


def piped_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")


def below(folder: Path) -> None:
    (folder / "checkpoint-1").mkdir()


def hidden(folder: Path) -> None:
    (folder / ".hidden\n\x1b[31m").write_text("x")


@pytest.mark.slow
@pytest.mark.parametrize("add", [pickle, link, pipe, below, hidden])
def test_anything_else_beside_the_adapter_is_found(run: Path, add: Callable[[Path], None]) -> None:
    add(run / "adapter")
    (found,) = errors(run, "unexpected-file")
    assert "no run writes" in str(found["detail"])
    assert "\x1b" not in str(found["detail"])
    assert invoke("export", run, run.parent / "copy").exit_code == 0  # the logs are whole


@pytest.mark.parametrize("add", [linked_weights, piped_config])
def test_what_stands_in_place_of_the_adapter_is_not_read(run: Path, add: Callable[[Path], None]) -> None:
    add(run / "adapter")
    errors(run, "unexpected-file", "adapter-file")


def test_many_files_beside_the_adapter_are_counted(run: Path) -> None:
    for number in range(300):
        (run / "adapter" / f"{number}.bin").touch()
    assert len(errors(run, "unexpected-file")) == MAX_NAMED + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_an_adapter_that_is_no_folder_is_found(run: Path, kind: str) -> None:
    shutil.rmtree(run / "adapter")
    place = run / "adapter"
    {"link": lambda: place.symlink_to("/etc"), "file": place.touch, "pipe": lambda: os.mkfifo(place)}[kind]()
    errors(run, "unexpected-file")


def test_an_adapter_larger_than_its_log_is_not_read(run: Path) -> None:
    os.truncate(run / "adapter" / "adapter_model.safetensors", 1 << 40)  # a file with holes takes no room
    refused(invoke("verify", run), "is larger than")


def test_checkpoints_that_are_no_files_are_found(run: Path) -> None:
    (run / "checkpoints").mkdir()
    os.mkfifo(run / "checkpoints" / "global.note")
    errors(run, "unexpected-file")


# ---- exports ----------------------------------------


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Path:
    assert invoke("export", run, tmp_path / "export").exit_code == 0
    return tmp_path / "export"


def index(export: Path, data: object) -> None:
    (export / "index.json").write_text(data if isinstance(data, str) else json.dumps(data))


FORMAT = "echelon.export.v1"
INDICES: dict[str, object] = {
    "a path": {"format": FORMAT, "topics": [{"topic": "../../etc/passwd"}]},
    "an absolute path": {"format": FORMAT, "topics": [{"topic": "/etc/passwd"}]},
    "a number": {"format": FORMAT, "topics": [{"topic": 7}]},
    "nothing": {"format": FORMAT, "topics": [{"topic": None}]},
    "deep": "[" * 1_000_000,
    "deep topics": f'{{"format": "{FORMAT}", "topics": ' + "[" * 500_000,
    "twice": {"format": FORMAT, "topics": [{"topic": "global"}, {"topic": "global"}]},
    "many": {"format": FORMAT, "topics": [{"topic": f"t{i}"} for i in range(5000)]},
    "no list": {"format": FORMAT, "topics": 7},
    "half of a surrogate pair": f'{{"format": "{FORMAT}", "topics": [{{"topic": "\\ud800"}}]}}',
    "large": " " * (9 << 20),
    "digits": "9" * 100_000,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_names_what_no_export_has_is_refused(export: Path, name: str) -> None:
    index(export, INDICES[name])
    refused(invoke("verify", export))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_a_topic_that_is_no_regular_file_is_not_opened(export: Path, kind: str) -> None:
    place = export / "delta.b.records"
    place.unlink()
    make = {
        "link": lambda: place.symlink_to(export / "global.records"), "pipe": lambda: os.mkfifo(place),
        "folder": place.mkdir, "device": lambda: place.symlink_to("/dev/zero"),
    }  # fmt: skip
    make[kind]()
    refused(invoke("verify", export), "delta.b.records")


def test_an_index_that_is_a_link_is_not_followed(export: Path) -> None:
    (export / "index.json").rename(export / "other.json")
    (export / "index.json").symlink_to(export / "other.json")
    refused(invoke("verify", export), "symbolic link")


def test_a_topic_that_the_index_hides_is_found(export: Path) -> None:
    shutil.copy(export / "global.records", export / "delta.c.records")
    errors(export, "unexpected-topic")


def test_a_record_that_says_it_is_endless_is_a_finding(export: Path) -> None:
    path = export / "delta.b.records"
    path.write_bytes(path.read_bytes() + b"\xff\xff\xff\xff" + bytes(100))
    errors(export, "unreadable")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a\0b", "/dev/zero", "/dev/null", "none", ".", "x://y", "sqlite://", "memory://x"]
)
def test_what_is_no_source_is_named(name: str) -> None:
    result = invoke("verify", name)
    assert result.exit_code in (1, 2)  # an empty log in memory has no genesis
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_broker_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "broker.yaml")
    refused(invoke("verify", tmp_path / "broker.yaml"), "no regular file")
