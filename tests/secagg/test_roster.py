from __future__ import annotations

import pytest
from pydantic import ValidationError

from echelon.errors import ProtocolError
from echelon.messages.envelope import Signer
from echelon.secagg.roster import Roster, RosterEntry, WindowLeaf, bases_root, merkle_root, roster_root
from tests.secagg.federation import names, roster_of, signer_of


def test_a_roster_is_signed_canonical_and_knows_its_devices() -> None:
    roster = roster_of(names(3))
    enrolment = Signer(bytes(31) + b"\x07")
    roster.verify(enrolment.public)
    again = Roster.decode(roster.encode())
    assert again == roster
    assert again.digest == roster.digest
    assert roster.key("d001") == signer_of("d001").public
    assert roster.entry("d002").slot == 2
    assert "d001" in roster
    assert "d009" not in roster
    with pytest.raises(ProtocolError, match="enrol it first"):
        roster.key("d009")
    with pytest.raises(ProtocolError, match="not signed"):
        roster.verify(signer_of("x").public)
    changes = (
        {"boundary": "other"},
        {"entries": roster.entries[:2]},
        {"aggregator": b"x" * 32},
        {"gate": b"x" * 32},
    )
    for change in changes:
        with pytest.raises(ProtocolError, match="not signed"):
            roster.model_copy(update=change).verify(enrolment.public)


def test_names_keys_and_slots_of_a_roster_are_distinct() -> None:
    one = RosterEntry(device="a", public=b"a" * 32, slot=0)
    keys = {"aggregator": b"A" * 32, "gate": b"G" * 32}
    for change in (
        {"device": "a", "public": b"b" * 32, "slot": 1},
        {"device": "b", "slot": 1},
        {"device": "b", "public": b"b" * 32},
        {"device": "b", "public": keys["aggregator"], "slot": 1},
        {"device": "b", "public": keys["gate"], "slot": 1},
    ):
        with pytest.raises(ValidationError, match=r"device|key|slot"):
            Roster.enrol("ward", [one, one.model_copy(update=change)], signer_of("e"), **keys)
    with pytest.raises(ValidationError, match="key"):
        Roster.enrol("ward", [one], signer_of("e"), aggregator=b"A" * 32, gate=b"A" * 32)
    with pytest.raises(ValidationError, match="ascending"):
        Roster(
            boundary="w", entries=(one.model_copy(update={"device": "b"}), one), signature=bytes(64), **keys
        )


def leaf(device: str, **changes: object) -> WindowLeaf:
    fields = {
        "weight": 3,
        "base_version": 2,
        "base_sha256": b"b" * 32,
        "upload_sha256": b"u" * 32,
        "signature": b"s" * 64,
    }
    return WindowLeaf(device, **{**fields, **changes})  # type: ignore[arg-type]


def test_the_roster_root_binds_every_field_and_not_the_order() -> None:
    base = [leaf("a"), leaf("b"), leaf("c")]
    roots = {roster_root(base), roster_root(base[:2]), roster_root([*base[:2], leaf("d")])}
    for change in (
        {"weight": 4},
        {"base_version": 3},
        {"base_sha256": b"c" * 32},
        {"upload_sha256": b"v" * 32},
        {"signature": b""},
    ):
        roots.add(roster_root([*base[:2], leaf("c", **change)]))
    assert len(roots) == 8
    assert roster_root(base[::-1]) == roster_root(base)
    for wrong in ([], [leaf("a"), leaf("a", weight=1)]):
        with pytest.raises(ProtocolError):
            roster_root(wrong)


def test_the_merkle_tree_hash_is_that_of_rfc_9162() -> None:
    """Test vectors of the certificate-transparency reference tree, by number of leaves."""
    leaves = [bytes.fromhex(h) for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                         "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
    roots = {
        0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    }
    for count, root in roots.items():
        assert merkle_root(leaves[:count]).hex() == root


def test_the_root_of_the_bases() -> None:
    bases = [(1, b"a" * 32), (2, b"b" * 32)]
    assert bases_root(bases) == bases_root(bases[::-1])
    assert bases_root(bases) != bases_root([(1, b"b" * 32), (2, b"a" * 32)])
    for wrong in ([], [(1, b"a" * 32), (1, b"b" * 32)]):
        with pytest.raises(ProtocolError):
            bases_root(wrong)
