"""Proofs of commits, checked by a program that was written from the specifications alone."""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from echelon.audit.merkle import leaf_hash, tree_root
from echelon.audit.note import Checkpoint, SignedNote, origin
from echelon.audit.proofs import commit_proof
from echelon.errors import AuditError, ConfigError
from echelon.laws.keys import CONTROLLER as THE_CONTROLLER
from echelon.laws.keys import gate_of_place
from echelon.messages.envelope import Signer
from tests.audit import outside
from tests.audit.synthetic import CONTROLLER, GATES, RUN, Exchange, scenario, terms
from tests.audit.test_cli import invoke, write_run
from tests.audit.test_signers import begun, change
from tests.laws.test_keys import GATE_A, LATER, NEXT, THIEF, stated

RUN_A = scenario()
NAME = origin(RUN, "global")


def leaves(exchange: Exchange) -> list[bytes]:
    return [leaf_hash(r.value) for r in exchange.main.records if r.headers[0] != ("kind", b"chunk")]


def head(exchange: Exchange, size: int, signer: Signer = CONTROLLER, name: str = NAME) -> bytes:
    return Checkpoint(name, size, tree_root(leaves(exchange)[:size])).sign(name, signer).encode()


def written(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_the_program_outside_has_nothing_of_ours() -> None:
    tree = ast.parse(Path(outside.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.partition(".")[0] for name in imported}
    assert roots - set(sys.stdlib_module_names) == {"cryptography"}


@pytest.mark.parametrize("number", range(5))
def test_every_commit_is_proved_to_somebody_without_our_code(number: int, tmp_path: Path) -> None:
    count = len(leaves(RUN_A))
    notes = [head(RUN_A, size) for size in (1, count // 2, count)]
    folder = written(tmp_path / "proof", commit_proof(RUN_A.topics, number, notes))
    found = outside.check(folder, RUN_A.genesis_sha256)
    assert found["size"] == count
    assert found["deltas"] == [0, 2, 2, 1, 2][number]
    assert found["consistent"] in (2, 3), "from the commit, and from both earlier checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize("size", range(1, 20))
def test_every_pair_of_sizes_is_consistent(size: int, tmp_path: Path) -> None:
    """A log of nineteen manifests, so that trees are lopsided in every way."""
    exchange = Exchange(terms())
    while len(leaves(exchange)) < 19:
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
    number = min(size - 1, 18)
    folder = written(
        tmp_path / "proof", commit_proof(exchange.topics, number, [head(exchange, n) for n in range(1, 20)])
    )
    found = outside.check(folder, exchange.genesis_sha256)
    assert (found["index"], found["size"]) == (number, 19)
    assert found["consistent"] in (18, 19)


def test_the_program_runs_on_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RUN_A)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "global.note").write_bytes(head(RUN_A, len(leaves(RUN_A))))
    out = tmp_path / "proof"
    result = invoke("export", run, "--proof", 2, "--out", out)
    assert result.exit_code == 0, result.output
    done = subprocess.run(
        [sys.executable, "-I", outside.__file__, out, RUN_A.genesis_sha256.hex()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    payload = json.loads(done.stdout)["payload"]
    commits = json.loads(invoke("replay", run, "--json").output)["commits"]
    assert payload == commits[2]["adapter_sha256"]


FILES = sorted(
    set(commit_proof(RUN_A.topics, 2, [head(RUN_A, 3), head(RUN_A, len(leaves(RUN_A)))])) - {"index.json"}
)


def accepted_changes(
    files: dict[str, bytes], name: str, every: int, genesis: bytes, folder: Path
) -> list[int]:
    """Places of a file at which a changed byte is not found outside; one in so many is tried."""
    accepted = []
    for at in range(0, len(files[name]), every):
        data = bytearray(files[name])
        data[at] = data[at] ^ 1 if data[at] ^ 1 not in b"\n" else data[at] ^ 2
        proof = written(folder / f"{name}{at}", {**files, name: bytes(data)})
        try:
            outside.check(proof, genesis)
        except Exception:  # a script for strangers: it refuses by whatever reading such a file raises
            continue
        accepted.append(at)
    return accepted


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_change_in_any_file_is_found_outside(name: str, tmp_path: Path) -> None:
    files = commit_proof(RUN_A.topics, 2, [head(RUN_A, 3), head(RUN_A, len(leaves(RUN_A)))])
    every = max(1, len(files[name]) // 60)
    accepted = accepted_changes(files, name, every, RUN_A.genesis_sha256, tmp_path)
    # Names of keys in DSSE, the names of files in sha256sum's format, and labels in JSON are covered by nothing.
    unsigned = {"payload.sha256": range(64, 80)}.get(name, range(0))
    if name.endswith(".dsse.json"):
        keyid = files[name].index(b'"keyid":')
        unsigned = range(keyid, keyid + 30)
    assert [at for at in accepted if at not in unsigned] == []


def test_a_log_without_a_covering_checkpoint_proves_nothing() -> None:
    with pytest.raises(ConfigError, match="no checkpoint of global covers commit 2"):
        commit_proof(RUN_A.topics, 2, [head(RUN_A, 1)])
    with pytest.raises(ConfigError, match="no checkpoint"):
        commit_proof(RUN_A.topics, 0, [])
    with pytest.raises(ConfigError, match="commits 0 to 4"):
        commit_proof(RUN_A.topics, 5, [head(RUN_A, 3)])


def test_checkpoints_that_contradict_the_log_are_no_base_for_a_proof() -> None:
    size = len(leaves(RUN_A))
    with pytest.raises(AuditError, match="not signed by the log's writer"):
        commit_proof(RUN_A.topics, 1, [head(RUN_A, size, GATES[0])])
    wrong = Checkpoint(NAME, size, b"\x01" * 32).sign(NAME, CONTROLLER).encode()
    with pytest.raises(AuditError, match="is not of this log"):
        commit_proof(RUN_A.topics, 1, [wrong])
    later = Checkpoint(NAME, size + 1, b"\x01" * 32).sign(NAME, CONTROLLER).encode()
    with pytest.raises(AuditError, match="is not of this log"):
        commit_proof(RUN_A.topics, 1, [later])
    with pytest.raises(AuditError, match="cannot be read"):
        commit_proof(RUN_A.topics, 1, [b"nonsense"])
    other = origin(RUN, "delta.a")
    found = commit_proof(RUN_A.topics, 1, [head(RUN_A, 3, GATES[0], other), head(RUN_A, size)])
    assert SignedNote.decode(found["checkpoint.note"]).verified(NAME, CONTROLLER.public)


@pytest.mark.parametrize("topic", ["global", "delta.a"])
def test_a_log_that_does_not_hold_proves_nothing(topic: str) -> None:
    note = head(RUN_A, len(leaves(RUN_A)))
    for index in range(1, 4):
        topics = {**RUN_A.topics, topic: [r for r in RUN_A.topics[topic] if r.offset != index]}
        with pytest.raises((AuditError, ConfigError)):
            commit_proof(topics, 2, [note])


def test_the_commit_and_its_adapter_are_the_logs(tmp_path: Path) -> None:
    files = commit_proof(RUN_A.topics, 4, [head(RUN_A, len(leaves(RUN_A)))])
    digest = hashlib.sha256(RUN_A.core.adapter.tobytes()).hexdigest()
    assert files["payload.sha256"] == f"{digest}  payload\n".encode()


SECOND_GATE, SECOND_HAND = Signer(b"\x54" * 32), Signer(b"\x55" * 32)
CHANGED_COMMITS = 3


@cache
def changed() -> tuple[Exchange, tuple[int, ...]]:
    """The controller's key and that of gate a are handed on, gate b's and then the controller's are revoked; the former
    key of gate b writes on. And the index of each change."""
    exchange, places = begun(), []

    def changes(kind: str, *arguments: object, **fields: object) -> None:
        places.append(exchange.main.number)
        change(exchange, kind, stated(kind, *arguments, **fields))  # type: ignore[arg-type]

    exchange.main.signer = NEXT
    changes("key.next", THE_CONTROLLER, CONTROLLER, NEXT)
    changes("key.next", GATE_A, GATES[0], LATER)
    exchange.gates[0].signer = LATER
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    changes("key.end", gate_of_place(1), GATES[1], SECOND_GATE)
    exchange.delta(1)  # with the revoked key: no part of the log
    exchange.gates[1].number -= 1
    exchange.gates[1].signer = SECOND_GATE
    exchange.delta(0)
    exchange.delta(1)
    exchange.commit()
    exchange.main.signer = SECOND_HAND
    changes("key.end", THE_CONTROLLER, NEXT, SECOND_HAND, number=2)
    exchange.close()
    assert exchange.core.newest == CHANGED_COMMITS
    return exchange, tuple(places)


def changed_notes() -> list[bytes]:
    """Before all changes, in the middle, and over the whole log, each with the key of then."""
    exchange, (first, *_, last) = changed()
    size = len(leaves(exchange))
    return [head(exchange, first), head(exchange, last, NEXT), head(exchange, size, SECOND_HAND)]


@pytest.mark.parametrize("number", range(CHANGED_COMMITS + 1))
def test_a_commit_of_a_run_whose_keys_changed_is_proved_outside(number: int, tmp_path: Path) -> None:
    """The changes themselves are in the proof: from the pinned genesis alone the verifier follows every key."""
    exchange, places = changed()
    files = commit_proof(exchange.topics, number, changed_notes())
    found = outside.check(written(tmp_path / "proof", files), exchange.genesis_sha256)
    assert found["size"] == len(leaves(exchange))
    assert found["deltas"] == (2 if number else 0)
    controllers, gates = {places[0], places[3]}, {places[1], places[2]}
    named = {int(name.split("-")[2].split(".")[0]) for name in files if name.startswith("key-change-")}
    assert named == controllers | (gates if number else set())


def test_a_proof_under_an_earlier_checkpoint_has_the_changes_before_it(tmp_path: Path) -> None:
    """The revocation that came later is not in it, and none is needed: an earlier key signed that checkpoint."""
    exchange, places = changed()
    notes = changed_notes()[:2]
    folder = written(tmp_path / "proof", commit_proof(exchange.topics, 2, notes))
    assert outside.check(folder, exchange.genesis_sha256)["size"] == places[3]
    assert not (folder / f"key-change-{places[3]}.dsse.json").exists()


def test_a_checkpoint_that_a_former_key_signed_too_late_is_no_base_for_a_proof() -> None:
    exchange, places = changed()
    size = len(leaves(exchange))
    for signer, over in ((CONTROLLER, size), (NEXT, size), (CONTROLLER, places[0] + 1), (THIEF, size)):
        with pytest.raises(AuditError, match="not signed by the log's writer"):
            commit_proof(exchange.topics, 1, [head(exchange, over, signer)])


def test_a_checkpoint_by_a_key_that_begins_behind_it_does_not_prove_its_own_key() -> None:
    exchange, places = changed()
    with pytest.raises(ConfigError, match="signed with a key that begins behind them"):
        commit_proof(exchange.topics, 1, [head(exchange, places[0], SECOND_HAND)])
    files = commit_proof(exchange.topics, 1, [head(exchange, places[0], SECOND_HAND), changed_notes()[2]])
    assert f"checkpoint-{places[0]}.note" in files


def _without(*places: int) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Some of the changes are left out, as who has a former key would like it."""
    names = tuple(f"key-change-{changed()[1][place]}." for place in places)
    return lambda files: {name: data for name, data in files.items() if not name.startswith(names)}


def _of_another_place(files: dict[str, bytes]) -> dict[str, bytes]:
    """The record of one change stands in the place of another one."""
    first, second = (f"key-change-{changed()[1][place]}.dsse.json" for place in (1, 2))
    return {**files, first: files[second]}


def _thiefs_head(files: dict[str, bytes]) -> dict[str, bytes]:
    """The newest head is signed with the revoked key, in every file."""
    exchange, _ = changed()
    old, new = changed_notes()[2], head(exchange, len(leaves(exchange)), NEXT)
    return {name: data.replace(old, new) for name, data in files.items()}


BROKEN: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "without the controller's first change": _without(0),
    "without the controller's last change": _without(3),
    "without any change of the controller's": _without(0, 3),
    "without the gate's": _without(1),
    "without the revocation of a gate": _without(2),
    "without changes": _without(0, 1, 2, 3),
    "one change for another": _of_another_place,
    "a head of the revoked key": _thiefs_head,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_proof_whose_changes_do_not_hold_proves_nothing(name: str, tmp_path: Path) -> None:
    exchange, _ = changed()
    files = BROKEN[name](commit_proof(exchange.topics, 3, changed_notes()))
    with pytest.raises((AssertionError, InvalidSignature, FileNotFoundError)):
        outside.check(written(tmp_path / "proof", files), exchange.genesis_sha256)


@pytest.mark.slow
def test_a_change_in_any_file_about_keys_is_found_outside(tmp_path: Path) -> None:
    exchange, _ = changed()
    files = commit_proof(exchange.topics, 3, changed_notes())
    for name in (one for one in files if one.startswith("key-change-")):
        assert accepted_changes(files, name, 7, exchange.genesis_sha256, tmp_path) == []


def test_where_proofs_go_must_be_said_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", RUN_A)
    assert invoke("export", run).exit_code == 2
    assert invoke("export", run, tmp_path / "a", "--out", tmp_path / "b").exit_code == 2
    assert invoke("export", run, "--out", run, "--proof", 1).exit_code == 2
    assert invoke("export", run, "--out", tmp_path / "c", "--proof", 1).exit_code == 2, "no checkpoint"
    assert invoke("export", run, "--out", tmp_path / "d", "--proof", 9).exit_code == 2
    assert invoke("export", run, "--out", tmp_path / "e").exit_code == 0
