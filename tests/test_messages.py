"""Whatever somebody writes in a file of settings, the answer is a sentence: no type of a program is in it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from echelon.audit.policy import Policy, _File
from echelon.config.broker import BrokerSettings, load_broker
from echelon.config.profile import ProfileFile, load_profile
from echelon.config.reading import load_yaml
from echelon.config.run import RunSettings, dump, load, parse
from echelon.errors import ConfigError
from echelon.provision.broker_map import BrokerMap, load_brokers
from echelon.provision.kafka.scope import Scope, load_scope
from echelon.services.config import DeviceConfig, EdgeConfig, GateConfig, load_service
from echelon.sim.schedule import Schedule
from echelon.sim.schedule import load as load_schedule
from echelon.topics import PlaneTopics, load_catalogue
from echelon.validation import PATTERNS

ROOT = Path(__file__).resolve().parents[1]
TLS = {"ca": "ca.pem", "certificate": "tls.pem", "key": "k.pem", "reload": 1.0}
SCRAM = {"ca": "ca.pem", "sasl": {"mechanism": "SCRAM-SHA-512", "username": "u", "password_file": "p"}}
BROKER = {"url": "kafka://b:9093", "security": TLS}
SERVICE = {
    "manifest_sha256": "ab" * 32,
    "boundary": "a",
    "broker": {"url": "kafka://b:9093", "security": SCRAM},
    "http": {"host": "h", "port": 0},
    "log": {"level": "info"},
    "state": "state",
}


def run_file() -> dict[str, Any]:
    fields = yaml.safe_load(dump(load(ROOT / "examples" / "elsa.yaml")))
    assert isinstance(fields, dict)
    return fields


def load_fields(path: Path) -> object:
    """A run file, read as JSON, which is quick."""
    fields = json.loads(path.read_text())
    return parse(fields, str(path)) if isinstance(fields, dict) else load(path)


def catalogue() -> dict[str, Any]:
    return dict(load_yaml((ROOT / "topics" / "boundary.yaml").read_text(), ""))


def load_topics(path: Path) -> object:
    for name in ("boundary", "exchange"):
        (path.parent / f"{name}.yaml").write_text((ROOT / "topics" / f"{name}.yaml").read_text())
    (path.parent / "boundary.yaml").write_text(path.read_text())
    return load_catalogue(path.parent)


def load_policy(path: Path) -> object:
    return Policy.of(load_yaml(path.read_bytes(), "policy"), str(path))


def entry(number: int) -> dict[str, Any]:
    return {"url": f"kafka://h:{number}", "ca": "ca.pem", "replication": 1}


def schemas(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model, and every one that stands inside it."""
    yield model
    waiting = [field.annotation for field in model.model_fields.values()]
    for kind in waiting:
        waiting += get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from schemas(kind)


FILES: dict[str, tuple[Callable[[Path], object], Callable[[], dict[str, Any]]]] = {
    "run file": (load_fields, run_file),
    "broker": (load_broker, lambda: copy.deepcopy(BROKER)),
    "broker map": (load_brokers, lambda: {"exchange": entry(1), "boundaries": {"a": entry(2), "b": entry(3)}}),
    "device": (
        lambda path: load_service(DeviceConfig, path, {}),
        lambda: {**copy.deepcopy(SERVICE), "slot": "slot", "own_slot_only": False, "slot_wait": 1.0},
    ),
    "gate": (
        lambda path: load_service(GateConfig, path, {}),
        lambda: {**copy.deepcopy(SERVICE), "exchange": copy.deepcopy(BROKER), "shutdown": 5.0},
    ),
    "edge": (
        lambda path: load_service(EdgeConfig, path, {}),
        lambda: {**copy.deepcopy(SERVICE), "edge": "a.e"},
    ),
    "topics file": (
        load_scope,
        lambda: {
            "broker": copy.deepcopy(BROKER), "plane": "boundary", "boundary": "a", "devices": ["a-0"],
            "edges": ["a.e"], "shards": 2, "replication": 1,
        },
    ),
    "catalogue": (load_topics, catalogue),
    "profile": (load_profile, lambda: yaml.safe_load((ROOT / "examples" / "split-profile.yaml").read_text())),
    "policy": (load_policy, lambda: {"quorum": 1, "logs": {"global": 1}, "witnesses": {"w": "ab" * 32}, "lag": 3}),
    "schedule": (
        load_schedule,
        lambda: json.loads(next(iter(sorted((ROOT / "tests" / "sim" / "found").glob("*.json")))).read_text()),
    ),
}  # fmt: skip
WRONG: list[Any] = [
    None,
    True,
    7,
    -1,
    2.5,
    10**30,
    "x",
    "",
    "Ü b\n",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
    [{"x": 1}],
]
PROGRAM = re.compile(
    r"dictionary|instance of|pathlib|<class|tuple|\bstr\b|\bdict\b|valid string|Extra inputs|Field required|valid list|"
    r"pydantic|\w+Settings\b|\w+Config\b|NoneType|valid boolean|constrained|function-|Literal|\[key\]|literal\[|JSON|"
    r"Traceback|json_invalid|valid enum|[a-z]+_type\b|\(\?:"
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands: every setting, section and item; of a list the first item only."""
    yield at
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for part, below in inner:
        yield from places(below, (*at, part))


def changed(fields: dict[str, Any], at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    found = copy.deepcopy(fields)
    place: Any = found
    for part in at[:-1]:
        place = place[part]
    place[at[-1]] = value
    return found


def said(read: Callable[[Path], object], path: Path, fields: Any) -> str | None:
    path.write_text(json.dumps(fields))  # which is YAML, too
    try:
        read(path)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_wrong_value_anywhere_is_answered_in_words(kind: str, tmp_path: Path) -> None:
    read, made = FILES[kind]
    path, fields = tmp_path / "file.yaml", made()
    wrong = WRONG[::4] if kind == "catalogue" else WRONG  # it is long, and its YAML is read anew each time
    assert said(read, path, fields) is None
    answers = 0
    for at in places(fields):
        for value in wrong:
            text = said(read, path, changed(fields, at, value))
            if text is None:
                continue
            answers += 1
            assert not PROGRAM.search(text.replace(str(tmp_path), "")), (at, value, text)
            assert len(text) < 2000, (at, value, text)
            if at and isinstance(at[-1], str) and "Input should" in text and value not in ({}, {"x": 1}):
                assert at[-1][:64] in text, (at, value, text)
    assert answers > 10


@pytest.mark.parametrize(
    "schema", [RunSettings, BrokerSettings, BrokerMap, DeviceConfig, GateConfig, EdgeConfig, Scope, PlaneTopics,
               ProfileFile, Schedule, _File], ids=lambda schema: schema.__name__,
)  # fmt: skip
def test_every_pattern_of_a_setting_has_words(schema: type[BaseModel]) -> None:
    text = json.dumps(schema.model_json_schema())
    found = {json.loads(f'"{one}"') for one in re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', text)}
    assert found <= PATTERNS.keys()


def test_an_alternative_of_another_kind_is_named_with_the_rest(tmp_path: Path) -> None:
    text = said(load, tmp_path / "run.yaml", changed(run_file(), ("adapter", "targets"), 3))
    assert text is not None
    assert "adapter.targets: Input should be 'all-linear', or be a list" in text


@pytest.mark.parametrize(
    ("kind", "at", "line"),
    [
        ("broker map", ("boundaries", "a", "ul"), "boundaries.a.ul is no setting; did you mean url?"),
        ("broker map", ("exchang",), "exchang is no setting; did you mean exchange?"),
        (
            "broker",
            ("security", "zzz"),
            "security.zzz is no setting; there are ca, certificate, key, passphrase_file",
        ),
        ("gate", ("shutdwn",), "shutdwn is no setting; did you mean shutdown?"),
        (
            "gate",
            ("exchange", "security", "certificat"),
            "certificat is no setting; did you mean certificate?",
        ),
        ("topics file", ("shard",), "shard is no setting; did you mean shards?"),
        (
            "catalogue",
            ("topics", 0, "reader"),
            'topics "control" (0): reader is no setting; did you mean readers?',
        ),
        ("profile", ("edge", "memry"), "edge.memry is no setting; did you mean memory?"),
    ],
)
def test_a_name_that_is_not_known_gets_the_nearest_in_every_file(
    kind: str, at: tuple[Any, ...], line: str, tmp_path: Path
) -> None:
    read, made = FILES[kind]
    text = said(read, tmp_path / "file.yaml", changed(made(), at, "x"))
    assert text is not None
    assert line in text
