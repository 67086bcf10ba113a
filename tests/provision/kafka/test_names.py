"""No name that a run may have makes two parties one: neither as principals, nor as topics, nor as folders or files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.broker import BrokerSettings
from echelon.config.run import RunSettings, parse
from echelon.errors import ConfigError
from echelon.messages.envelope import Dsse, Signer
from echelon.messages.manifest import MANIFEST_TYPE, BoundaryTerms, RunManifest
from echelon.messages.names import (
    PLACES,
    PRINCIPALS,
    RESERVED,
    aggregator_of,
    check_boundary,
    check_member,
    gate_of,
    witness_of,
)
from echelon.messages.wire import Refused
from echelon.provision.kafka.desired import Operation, Resource, desired
from echelon.provision.kafka.scope import Scope
from echelon.provision.pki import BREAK_GLASS, BROKER
from echelon.secagg.roster import EdgeEntry, Roster, RosterEntry
from echelon.topics import Plane, Role, load_catalogue
from tests.audit.synthetic import OPERATOR
from tests.audit.synthetic import terms as synthetic_terms

FLOOR = 2
WORDS = st.one_of(
    st.sampled_from([*sorted(RESERVED), "a", "b", "a-0", "global", "delta", "edge-0", "x"]),
    st.text("abd-01", min_size=1, max_size=3),
)
"""Few letters, so that names meet; and every word that means something."""
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
"""Words with dots between them, as principals have them."""


def run_file(boundaries: dict[str, tuple[list[str], list[str]]]) -> RunSettings:
    """A run file: devices and edges by boundary."""
    fields = {
        "name": "r",
        "model": {"model": "echelon:tiny"},
        "secure": {"k_min": FLOOR},
        "budget": {"commits": 1},
        "boundaries": [
            {
                "name": name,
                "devices": [{"id": device} for device in devices],
                "data": {"source": "text:x"},
                **({"split": {"edges": [{"id": edge} for edge in edges]}} if edges else {}),
            }
            for name, (devices, edges) in boundaries.items()
        ],
    }
    return parse(fields, "run")


@pytest.mark.parametrize(
    "name",
    [
        *sorted(PRINCIPALS | PLACES),
        "other.gate",
        "a.b",
        "-a",
        "a-",
        "A",
        "a_b",
        "",
        "a/b",
        "..",
        "a" * 33,
        "a\n",
    ],
)
def test_a_boundary_cannot_have_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(ConfigError, match=r"may not be called|cannot be part of a topic's name"):
        run_file({name: (["d-0", "d-1"], [])})
    with pytest.raises(ValueError, match=r"may not be called|cannot be part of a topic's name"):
        Scope(broker=BrokerSettings(url="kafka://h:1"), plane=Plane.EXCHANGE, boundaries=(name,))
    with pytest.raises(ValueError, match=r"may not be called|cannot be part of a topic's name"):
        BoundaryTerms(
            name=name, gate_public="0" * 64, enrolment_public="0" * 64, roster_sha256="0" * 64, slots=1
        )
    with pytest.raises(ValueError, match=r"may not be called|cannot be part of a topic's name"):
        enrolled(name, ["d-0"], [])


def test_a_signed_manifest_with_such_a_name_is_refused() -> None:
    """Whoever holds the operator's key cannot bring it in either: everybody who reads the manifest refuses it."""
    terms = synthetic_terms()
    hostile = terms.canonical().replace(b'"name":"a"', b'"name":"b.gate"')
    assert hostile != terms.canonical()
    sealed = Dsse.seal(OPERATOR, MANIFEST_TYPE, hostile).encode()
    with pytest.raises(Refused, match="cannot be part of a topic's name"):
        RunManifest.open(sealed)


def test_every_role_and_every_principal_of_all_brokers_is_reserved() -> None:
    assert {role.value for role in Role} <= PRINCIPALS
    assert {BREAK_GLASS, BROKER} <= PRINCIPALS
    assert {plane.value for plane in Plane} - {"boundary"} <= PLACES


def test_a_device_cannot_have_the_name_of_another_boundarys_edge() -> None:
    with pytest.raises(ConfigError, match=r"two edges or devices are called 'a\.one'"):
        run_file({"a": (["a-0", "a-1"], ["one"]), "b": (["a.one", "b-1"], [])})


@pytest.mark.parametrize(("device", "word"), [*product(["{}", "a.{}", "{}.a"], sorted(RESERVED))])
def test_no_member_of_a_roster_has_a_word_for_a_name_that_means_something_else(
    device: str, word: str
) -> None:
    with pytest.raises(ValueError, match="may not be called"):
        enrolled("a", [device.format(word)], [])
    with pytest.raises(ValueError, match="may not be called"):
        enrolled("a", ["d-0"], [f"a.{word}"])


@pytest.mark.slow
@given(
    st.dictionaries(
        NAMES,
        st.tuples(st.lists(NAMES, min_size=2, max_size=3), st.lists(WORDS, max_size=1)),
        min_size=1,
        max_size=3,
    ),
    st.lists(NAMES, max_size=2, unique=True),
)
def test_no_two_parties_of_a_run_that_is_taken_have_anything_in_common(
    boundaries: dict[str, tuple[list[str], list[str]]], witnesses: list[str]
) -> None:
    try:
        settings = run_file(boundaries)
        exchange = scope_of(plane=Plane.EXCHANGE, boundaries=list(boundaries), witnesses=witnesses)
    except (ValueError, ConfigError):
        return
    assert not twice(actors(settings)), "state files and senders of records"
    assert not twice([*PLACES, *boundaries]), "folders and files of brokers"
    catalogue = load_catalogue()
    topics = [*load_catalogue().exchange_topics(exchange.boundary_names, witnesses)]
    logs = {"global", *(f"delta.{name}" for name in boundaries)}
    assert sorted(topics) == sorted(
        [*logs, *(f"head.{log}" for log in logs), *(f"witness.{name}" for name in witnesses)]
    )
    written = writers(exchange)
    assert written["controller"] == {"global", "head.global"}
    for name in boundaries:
        own = {f"witness.{name}"} if name in witnesses else set()
        assert written[gate_of(name)] == {f"delta.{name}", f"head.delta.{name}"} | own
    for name in witnesses:
        if name not in boundaries:
            assert written[witness_of(name)] == {f"witness.{name}"}
    for boundary in settings.boundaries:
        devices = [device.id for device in boundary.device_list()]
        inside = scope_of(
            plane=Plane.BOUNDARY,
            boundary=boundary.name,
            devices=devices,
            edges=list(boundary.edge_names()),
        )
        written = writers(inside)
        for role, principals in (
            (Role.DEVICE, devices),
            (Role.EDGE, list(boundary.edge_names())),
            (Role.AGGREGATOR, [aggregator_of(boundary.name)]),
            (Role.GATE, [gate_of(boundary.name)]),
        ):
            allowed = {topic.name for topic in catalogue.boundary.topics if role in topic.writers}
            for principal in principals:
                assert written[principal] == allowed


@given(NAMES, NAMES)
def test_every_door_has_the_same_rule(boundary: str, device: str) -> None:
    good = takes(check_boundary, boundary)
    assert good == takes(run_file, {boundary: (["d-0", "d-1"], [])})
    assert good == takes(enrolled, boundary, ["d-0"], [])
    assert good == takes(lambda: scope_of(plane=Plane.BOUNDARY, boundary=boundary, devices=["d-0"]))
    if not takes(lambda: RosterEntry(device=device, public=bytes(32), slot=0)):
        return  # characters that no name has
    good = takes(check_member, device)
    assert good == takes(run_file, {"a": ([device, "d-1"], [])})
    assert good == takes(enrolled, "a", [device], [])
    assert good == takes(lambda: scope_of(plane=Plane.BOUNDARY, boundary="a", devices=[device]))


def takes(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except (ValueError, ConfigError):
        return False
    return True


def enrolled(boundary: str, devices: list[str], edges: list[str]) -> Roster:
    keys = iter(range(1, 100))

    def public() -> bytes:
        return Signer(bytes([next(keys)]) * 32).public

    return Roster.enrol(
        boundary,
        [RosterEntry(device=device, public=public(), slot=slot) for slot, device in enumerate(devices)],
        Signer(bytes([200]) * 32),
        aggregator=public(),
        gate=public(),
        edges=[EdgeEntry(edge=edge, public=public()) for edge in edges],
    )


def scope_of(**fields: object) -> Scope:
    return Scope.model_validate({"broker": {"url": "kafka://h:1"}, **fields})


def actors(settings: RunSettings) -> Iterator[str]:
    yield "controller"
    for boundary in settings.boundaries:
        yield aggregator_of(boundary.name)
        yield gate_of(boundary.name)
        yield from (device.id for device in boundary.device_list())
        yield from boundary.edge_names()


def twice(names: Iterator[str] | list[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def writers(scope: Scope) -> dict[str, set[str]]:
    """Which topics each principal of a broker may write."""
    found: dict[str, set[str]] = {}
    for rule in desired(load_catalogue(), scope).rules:
        if (rule.resource, rule.operation) == (Resource.TOPIC.value, Operation.WRITE.value):
            found.setdefault(rule.principal, set()).add(rule.name)
    return found
