"""Which commits bring their adapter."""

from __future__ import annotations

import pytest

from echelon.laws.relay import is_relayed, may_relay, relayed_commit
from echelon.messages.exchange import RELAYED_HEADER, SOURCE_HEADER, Commit
from echelon.messages.kinds import OuterKind
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Refused
from tests.audit.synthetic import OPERATOR, Exchange, terms


def test_every_nth_commit_brings_its_adapter_and_the_last_one() -> None:
    manifest = terms(full_every=3, commits=8)
    assert [may_relay(manifest.exchange, commit) for commit in range(1, 9)] == [
        *(True, True, False), *(True, True, False), *(True, True),
    ]  # fmt: skip
    relayed = [commit for commit in range(1, 9) if is_relayed(manifest, commit, 0)]
    assert relayed == [1, 2, 4, 5, 7]


def test_the_commit_that_spends_the_tokens_brings_its_adapter() -> None:
    manifest = terms(full_every=3, tokens=1000)
    assert is_relayed(manifest, 2, 999)
    assert not is_relayed(manifest, 2, 1000)


def test_without_the_setting_nothing_is_relayed_and_no_byte_is_another() -> None:
    manifest = terms()
    assert not any(is_relayed(manifest, commit, 0) for commit in range(1, 9))
    assert b"full_every" not in manifest.canonical()
    exchange = Exchange(manifest)
    exchange.delta(0)
    exchange.delta(1)
    commit = exchange.commit()
    assert b"relayed" not in commit.encode()
    assert Commit.decode(commit.encode()) == commit
    said = commit.model_copy(update={"relayed": True})
    assert Commit.decode(said.encode()) == said


def test_a_commit_that_writes_out_that_it_is_not_relayed_is_refused() -> None:
    exchange = Exchange(terms(full_every=2))
    exchange.delta(0)
    exchange.delta(1)
    data = exchange.commit().encode()
    assert data.endswith(b"\xa7relayed\xc3")
    with pytest.raises(Refused):
        Commit.decode(data[:-1] + b"\xc2")


@pytest.mark.parametrize("kind", [OuterKind.NESTEROV, OuterKind.FEDADAM, OuterKind.CORRECTED])
def test_terms_that_relay_commits_of_a_rule_with_a_state_are_refused(kind: OuterKind) -> None:
    with pytest.raises(ValueError, match="which has no state"):
        terms(full_every=2, kind=kind)


def test_the_terms_say_so_and_are_signed() -> None:
    manifest = terms(full_every=5)
    assert RunManifest.open(manifest.seal(OPERATOR)) == manifest


def test_a_relayed_chunk_is_told_by_its_last_header() -> None:
    kind = ("kind", b"chunk")
    assert relayed_commit((kind, (RELAYED_HEADER, (7).to_bytes(8, "big")))) == 7
    assert relayed_commit((kind, (SOURCE_HEADER, (7).to_bytes(8, "big")))) is None
    assert relayed_commit(((RELAYED_HEADER, bytes(8)), kind)) is None
    assert relayed_commit(()) is None
