"""The catalogue says what the invariant needs it to say, and refuses to say anything else."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from echelon.actors.runtime import may_pass_over, may_read_back
from echelon.bus.base import TopicPartition
from echelon.bus.chunks import CHUNK
from echelon.errors import ConfigError
from echelon.messages.boundary import BOUNDARY as BOUNDARY_MESSAGES
from echelon.messages.boundary import INPUTS
from echelon.messages.exchange import EXCHANGE as EXCHANGE_MESSAGES
from echelon.messages.exchange import NOTES
from echelon.topics import MESSAGES, MIRRORED, Catalogue, Plane, Role, Trimmed, load_catalogue

ROOT = Path(__file__).resolve().parents[1]
TOPICS = ROOT / "topics"
LOADED = load_catalogue()
BOUNDARY, EXCHANGE = Plane.BOUNDARY, Plane.EXCHANGE


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return LOADED


def test_exactly_one_topic_crosses(catalogue):
    crossing = [
        (plane, topic.name)
        for plane in Plane
        for topic in catalogue.plane(plane).topics
        if topic.crosses_boundary
    ]
    assert crossing == [(BOUNDARY, "delta")]
    assert catalogue.topic(BOUNDARY, "delta").writers == (Role.AGGREGATOR,)


def test_what_devices_write_never_stands_on_the_exchange(catalogue):
    from_devices = {
        message
        for topic in catalogue.boundary.topics
        if {Role.DEVICE, Role.EDGE} & {*topic.writers}
        for message in topic.messages
    }
    assert "masked" in from_devices
    assert not from_devices & MESSAGES[EXCHANGE]
    writers = {role for topic in catalogue.exchange.topics for role in topic.writers}
    assert not writers & {Role.DEVICE, Role.EDGE, Role.AGGREGATOR}


def test_only_the_gate_stands_on_both_planes(catalogue):
    roles = {
        plane: {role for topic in catalogue.plane(plane).topics for role in (*topic.writers, *topic.readers)}
        for plane in Plane
    }
    assert roles[BOUNDARY] & roles[EXCHANGE] == {Role.GATE, Role.AUDITOR}


def test_the_exchange_is_one_partition_one_writer_for_ever(catalogue):
    for topic in catalogue.exchange.topics:
        assert (topic.partitions, len(topic.writers), topic.retention) == (1, 1, "unlimited")


def test_what_the_gate_derives_again_it_may_read(catalogue):
    for name in ("control", "handshake", "masked", "delta"):
        assert Role.GATE in catalogue.topic(BOUNDARY, name).readers
    gate_writes = {topic.name for topic in catalogue.boundary.topics if Role.GATE in topic.writers}
    assert gate_writes == {"global", "versions", "snapshots", "deadletter"}


def test_chunks_fit_where_they_are_allowed_and_messages_are_small_elsewhere(catalogue):
    for plane in Plane:
        for topic in catalogue.plane(plane).topics:
            large = topic.takes_chunks or topic.name == "global"
            assert topic.largest_record == (CHUNK + 4096 if large else 64 * 1024), topic.name


def test_every_message_type_has_a_home(catalogue):
    for plane in Plane:
        topics = catalogue.plane(plane).topics
        homes = {message for topic in topics for message in topic.messages if message != topic.chunk_type}
        assert homes == MESSAGES[plane]
    assert MESSAGES[BOUNDARY] == {message.kind for message in BOUNDARY_MESSAGES} | {MIRRORED}
    assert MESSAGES[EXCHANGE] == {message.kind for message in EXCHANGE_MESSAGES} | {*NOTES}


def test_chunks_are_taken_where_messages_have_payloads_and_nowhere_else(catalogue):
    takes = {plane: catalogue.plane(plane).where(lambda topic: topic.takes_chunks) for plane in Plane}
    assert takes == {
        BOUNDARY: {"model", "masked", "delta", "split.up", "split.down", "parts", "snapshots"},
        EXCHANGE: {"delta.{boundary}", "global"},
    }


def test_what_actors_ask_of_a_topic_follows_from_its_entry(catalogue):
    boundary = catalogue.boundary
    assert boundary.transient == {"split.up", "split.down", "behaviour", "leases"}
    assert boundary.not_stored == {
        *("checkin", "handshake", "masked", "split.up", "split.down", "behaviour", "versions", "leases"),
        "snapshots",
    }
    assert not catalogue.exchange.not_stored
    assert boundary.large == {"masked", "model", "delta", "parts", "snapshots"}
    assert boundary.for_all_members == {"control", "model"}


def test_what_the_audit_replays_is_never_trimmed_and_inputs_of_windows_are(catalogue):
    boundary, by_law = catalogue.boundary, Trimmed
    assert boundary.where(lambda topic: topic.trimmed is by_law.WINDOWS) == set(INPUTS)
    assert boundary.where(lambda topic: topic.trimmed is by_law.SNAPSHOTS) == {"snapshots"}
    assert boundary.where(lambda topic: topic.trimmed is by_law.AGE) == boundary.transient
    assert boundary.trimmable == {*INPUTS, "snapshots"}
    assert not catalogue.exchange.where(lambda topic: topic.trimmed is not by_law.NEVER)


@pytest.mark.parametrize(
    ("plane", "topic", "law"),
    [("boundary", "delta", "windows"), ("boundary", "global", "windows"), ("exchange", "global", "snapshots"),
     ("boundary", "control", "age"), ("boundary", "leases", "never")],
)  # fmt: skip
def test_a_law_that_lets_go_of_what_is_needed_is_refused(tmp_path, plane, topic, law):
    for file in ("boundary.yaml", "exchange.yaml"):
        fields = yaml.safe_load((ROOT / "topics" / file).read_text())
        for entry in fields["topics"]:
            if (fields["plane"], entry["name"]) == (plane, topic):
                entry["trimmed"] = law
        (tmp_path / file).write_text(yaml.safe_dump(fields))
    with pytest.raises(ConfigError, match=r"trimmed"):
        load_catalogue(tmp_path)


def test_a_reader_goes_on_behind_what_others_may_damage_and_not_over_a_hole_in_decisions(catalogue):
    passed = {"checkin", "handshake", "masked", "split.up", "split.down", "parts", "behaviour", "deadletter"}
    assert catalogue.boundary.where(lambda topic: topic.is_written_by(Role.DEVICE, Role.EDGE)) == passed
    names = {*catalogue.boundary_topics(2), *catalogue.exchange_topics(["a", "b"], ["w"]), "of-nobody"}
    assert {name for name in names if may_pass_over(TopicPartition(name))} == passed | {
        *("leases", "delta.a", "delta.b", "head.delta.a", "head.delta.b", "head.global", "witness.w")
    }


def test_a_stored_record_is_looked_for_wherever_its_writers_may_read(catalogue):
    stored = {
        *catalogue.boundary_topics(2),
        *catalogue.exchange_topics(["a"], ["w"]),
    } - catalogue.boundary.not_stored
    assert {name for name in stored if not may_read_back(TopicPartition(name))} == {"deadletter"}


def test_the_inputs_of_a_window_are_what_members_write_and_a_gate_reads(catalogue):
    assert (
        tuple(
            topic.name
            for topic in catalogue.boundary.topics
            if topic.is_written_by(Role.DEVICE, Role.EDGE) and topic.is_read_by(Role.GATE)
        )
        == INPUTS
    )


def test_only_messages_that_are_costly_to_take_leave_the_loop():
    costly = {message.kind for message in (*BOUNDARY_MESSAGES, *EXCHANGE_MESSAGES) if message.costly}
    assert costly == {"roster", "shares", "signatures", "unmask", "window"}


@pytest.mark.slow
def test_no_module_keeps_a_second_list_of_topics_or_messages(catalogue):
    topics = {topic.name.split("{")[0] for plane in Plane for topic in catalogue.plane(plane).topics}
    found = set()
    for path in sorted((ROOT / "echelon").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            for listed in ast.walk(node):
                if isinstance(listed, ast.Set | ast.Tuple | ast.List) and len(listed.elts) > 1:
                    words = {item.value for item in listed.elts if isinstance(item, ast.Constant)}
                    if len(words) == len(listed.elts) and words <= topics:
                        found.add((path.relative_to(ROOT).as_posix(), tuple(sorted(words))))
    assert found == {("echelon/messages/boundary.py", tuple(sorted(INPUTS)))}


def test_allows_is_a_closed_list(catalogue):
    assert catalogue.allows(EXCHANGE, "delta.hospital-a", "delta")
    assert catalogue.allows(EXCHANGE, "global", "commit")
    assert catalogue.allows(BOUNDARY, "delta", "delta.chunk")
    for plane, topic, message in (
        (EXCHANGE, "delta.hospital-a", "commit"),
        (EXCHANGE, "global", "delta"),
        (EXCHANGE, "masked", "masked"),
        (EXCHANGE, "delta.A", "delta"),
        (EXCHANGE, "delta.", "delta"),
        (EXCHANGE, "delta.a.b", "delta"),
        (EXCHANGE, "delta.a\n", "delta"),
        (EXCHANGE, "deltaxa", "delta"),
        (BOUNDARY, "delta.a", "delta"),
        (BOUNDARY, "delta", "masked"),
        (BOUNDARY, "nowhere", "void"),
        (BOUNDARY, "control", ""),
    ):
        assert not catalogue.allows(plane, topic, message), (topic, message)


@given(st.text(max_size=70))
def test_a_boundary_name_fills_the_template_or_is_refused(name):
    catalogue = LOADED
    template = catalogue.topic(EXCHANGE, "delta.{boundary}")
    good = (
        1 <= len(name) <= 63
        and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        and name[0] != "-"
        and name[-1] != "-"
    )
    if good:
        assert template.named(boundary=name) == f"delta.{name}"
        assert catalogue.topic(EXCHANGE, f"delta.{name}") is template
    else:
        with pytest.raises(ConfigError):
            template.named(boundary=name)
        assert not catalogue.allows(EXCHANGE, f"delta.{name}", "delta")


def test_names_and_partitions_of_a_federation(catalogue):
    names = catalogue.boundary_topics(slots=5)
    assert names["inbox"] == 5
    assert names["control"] == names["masked"] == 1
    assert catalogue.exchange_topics(["a", "b"], ["w"]) == {
        "delta.a": 1,
        "delta.b": 1,
        "global": 1,
        "head.delta.a": 1,
        "head.delta.b": 1,
        "head.global": 1,
        "witness.w": 1,
    }
    assert catalogue.names_for_boundary("a") == ("delta.a", "global")
    with pytest.raises(ConfigError, match="slots"):
        catalogue.boundary_topics(slots=0)
    with pytest.raises(ConfigError, match="give"):
        catalogue.topic(EXCHANGE, "global").named(boundary="a")
    with pytest.raises(ConfigError, match="there are delta"):
        catalogue.topic(EXCHANGE, "masked")


def _edit(plane, change):
    def edit(folder: Path) -> None:
        path = folder / f"{plane}.yaml"
        content = yaml.safe_load(path.read_text())
        change(content, {topic["name"]: topic for topic in content["topics"]})
        path.write_text(yaml.safe_dump(content))

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (_edit("boundary", lambda _, t: t["masked"].update(crosses_boundary=True)), "only delta"),
        (_edit("boundary", lambda _, t: t["delta"].update(crosses_boundary=False)), "only delta"),
        (_edit("exchange", lambda _, t: t["global"].update(crosses_boundary=True)), "only delta"),
        (_edit("exchange", lambda _, t: t["global"]["messages"].append("masked")), "unknown message"),
        (_edit("exchange", lambda _, t: t["global"]["messages"].remove("close")), "no topic carries"),
        (_edit("exchange", lambda _, t: t["global"]["writers"].append("aggregator")), "no business"),
        (_edit("exchange", lambda _, t: t["global"]["messages"].append("delta.chunk")), "unknown message"),
        (_edit("exchange", lambda _, t: t["global"]["messages"].remove("global.chunk")), "if, and only if"),
        (_edit("boundary", lambda _, t: t["control"]["messages"].append("control.chunk")), "if, and only if"),
        (_edit("boundary", lambda _, t: t["masked"].update(passed_over=False)), "end its readers"),
        (_edit("boundary", lambda _, t: t["masked"].pop("stored_first")), "stored_first"),
        (_edit("exchange", lambda _, t: t["global"].update(partitions=2)), "1 partition"),
        (_edit("exchange", lambda _, t: t["global"].update(retention=60)), "unlimited"),
        (_edit("exchange", lambda _, t: t["global"]["writers"].append("gate")), "1 writer"),
        (_edit("boundary", lambda c, t: c["topics"].append(t["model"])), "twice"),
        (_edit("boundary", lambda _, t: t["model"]["readers"].append("device")), "twice"),
        (_edit("boundary", lambda _, t: t["model"].update(colour="red")), "colour"),
        (_edit("boundary", lambda _, t: t["model"].pop("key")), "key"),
        (_edit("boundary", lambda _, t: t["model"].update(name="Model")), "a topic.s name"),
        (_edit("boundary", lambda _, t: t["model"].update(partitions="1")), "partitions"),
        (_edit("boundary", lambda _, t: t["model"].update(largest_record=2_000_000)), "largest_record"),
        (_edit("boundary", lambda _, t: t["model"].update(writers=["nobody"])), "writers"),
        (_edit("boundary", lambda _, t: t["model"].update(key=__import__("datetime").date.today())), "YAML"),
        (_edit("boundary", lambda c, _: c.update(plane="exchange")), "business"),
        (lambda folder: (folder / "boundary.yaml").write_text("a: [b"), "YAML"),
        (lambda folder: (folder / "boundary.yaml").write_bytes(b"\xff\xfe\xff"), "YAML"),
        (lambda folder: (folder / "boundary.yaml").write_text("#" * (1 << 20) + "#"), "larger"),
        (lambda folder: (folder / "exchange.yaml").unlink(), "cannot be read"),
    ],
)
def test_a_wrong_catalogue_is_refused_and_named(tmp_path, edit, word):
    folder = tmp_path / "topics"
    shutil.copytree(TOPICS, folder)
    load_catalogue(folder)
    edit(folder)
    with pytest.raises(ConfigError, match=word) as raised:
        load_catalogue(folder)
    assert str(folder) in str(raised.value)
