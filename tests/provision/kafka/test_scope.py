"""topics.yaml says which broker and for whom; what it may not say is named."""

from __future__ import annotations

import pytest
import yaml

from echelon.errors import ConfigError
from echelon.provision.kafka.scope import load_scope

GOOD = {
    "broker": {
        "url": "kafka://127.0.0.1:1",
        "security": {"ca": "ca.pem", "certificate": "tls.pem"},
    },
    "plane": "boundary",
    "boundary": "a",
    "devices": ["a-0", "a-1"],
    "shards": None,
}
EXCHANGE = {"broker": GOOD["broker"], "plane": "exchange", "boundaries": ["a", "b"], "witnesses": []}


def written(tmp_path, content):
    path = tmp_path / "topics.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    found = load_scope(written(tmp_path, GOOD))
    assert found.broker.security.ca == tmp_path / "ca.pem"
    assert found.broker.security.certificate == tmp_path / "tls.pem"
    assert (found.devices, found.shards) == (("a-0", "a-1"), None)
    assert load_scope(written(tmp_path, EXCHANGE)).boundary_names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({**GOOD, "colour": "red"}, "colour"),
        ({**GOOD, "plane": "moon"}, "plane"),
        ({**GOOD, "boundary": None}, "needs `boundary`"),
        ({**GOOD, "devices": []}, "needs `boundary` and `devices`"),
        ({**GOOD, "devices": ["a-0", "a-0"]}, "twice"),
        ({**GOOD, "devices": ["A 0"]}, r"devices\.0"),
        ({**GOOD, "devices": ["operator"]}, "means something else"),
        ({**GOOD, "devices": ["a.gate"]}, "means something else"),
        ({**GOOD, "devices": ["break-glass"]}, "means something else"),
        ({**GOOD, "boundaries": ["a"]}, "exchange plane"),
        ({**GOOD, "shards": 0}, "shards"),
        ({**GOOD, "shards": 1001}, "shards"),
        ({**GOOD, "min_insync": 2}, "above replication"),
        ({**GOOD, "relay": True}, "exchange plane"),
        ({**EXCHANGE, "devices": ["a-0"]}, "boundary plane"),
        ({**EXCHANGE, "one_device_principal": True}, "boundary plane"),
        ({**GOOD, "authorizer": ""}, "authorizer"),
        ({**EXCHANGE, "boundaries": []}, "needs `boundaries`"),
        ({**EXCHANGE, "boundaries": ["a", "a"]}, "twice"),
        ({**EXCHANGE, "boundaries": ["a.b"]}, r"boundaries\.0"),
        ({key: value for key, value in GOOD.items() if key != "broker"}, "broker"),
        ("a: [b", "YAML"),
        ("- a", "topics file"),
        ("#" * ((1 << 20) + 1), "larger"),
    ],
)
def test_what_it_may_not_say_is_named(tmp_path, content, word):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match=word) as raised:
        load_scope(path)
    assert str(path) in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scope(tmp_path / "none.yaml")
