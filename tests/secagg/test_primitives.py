"""Masks, keys, shares, their recovery, graphs, rosters."""

from __future__ import annotations

import functools
import hashlib
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from echelon.errors import ConfigError, ProtocolError
from echelon.messages.envelope import Signer
from echelon.messages.handshake import (
    SEALED_BYTES,
    Included,
    KeyEntry,
    KeyList,
    Sealed,
    SealedShare,
    SharesList,
    Upload,
)
from echelon.messages.wire import MAX_CONTROL_BYTES, DeviceId, Reason, Refused
from echelon.secagg import keys, recovery
from echelon.secagg.context import threshold
from echelon.secagg.entropy import Entropy
from echelon.secagg.graph import Ring, bits, complete
from echelon.secagg.prg import BATCH, CHUNK_BYTES, Masker, keystream
from echelon.secagg.recovery import Recovery
from echelon.secagg.roster import Roster, RosterEntry, WindowLeaf, bases_root, merkle_root, roster_root
from echelon.secagg.shamir import PRIME, Interpolation, deal
from tests.secagg.federation import names, roster_of, signer_of

# ---- prg -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [0, 1, 3, 4, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, CHUNK_BYTES // 2 + 5])
def test_a_mask_is_the_aes_ctr_keystream(words: int) -> None:
    key = bytes(range(16))
    raw = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * words))
    assert keystream(key, words).astype("<u4").tobytes() == raw


def test_the_keystream_is_that_of_fips_197() -> None:
    """The first block is AES-128 of the zero block; under the zero key that is 66e94bd4..., a standard vector."""
    assert keystream(bytes(16), 4).astype("<u4").tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_a_mask_added_and_taken_off_leaves_nothing() -> None:
    vector = np.arange(300_000, dtype=np.uint32)
    masker = Masker()
    masker.add(vector, [(b"k" * 16, 1), (b"l" * 16, -1)])
    both = np.arange(300_000, dtype=np.uint32) + keystream(b"k" * 16, 300_000) - keystream(b"l" * 16, 300_000)
    assert np.array_equal(vector, both)
    masker.add(vector, [(b"l" * 16, 1)])
    masker.add(vector, [(b"k" * 16, -1)])
    assert np.array_equal(vector, np.arange(300_000))


def test_masks_need_proper_arguments() -> None:
    vector = np.zeros(4, np.uint32)
    for key, sign in ((b"k" * 15, 1), (b"k" * 32, 1), (b"k" * 16, 0)):
        with pytest.raises(ProtocolError):
            Masker().add(vector, [(key, sign)])
    for wrong in (np.zeros(4, np.int32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ProtocolError):
            Masker().add(wrong, [(b"k" * 16, 1)])


def test_more_masks_than_ciphers_are_open_at_a_time() -> None:
    masks = [(i.to_bytes(16, "big"), 1) for i in range(BATCH + 3)]
    vector = np.zeros(5, np.uint32)
    Masker().add(vector, masks)
    assert np.array_equal(vector, sum(keystream(key, 5) for key, _ in masks))


# ---- keys and entropy ----------------------------------------------------------------------------


def test_derived_keys_are_separate_by_purpose_binding_and_order() -> None:
    secret = b"s" * 32
    found = [
        keys.derive(secret, b"a", b"", 16),
        keys.derive(secret, b"b", b"", 16),
        keys.derive(secret, b"a", b"x", 16),
        keys.derive(secret, b"ax", b"", 16),
        keys.derive(b"t" * 32, b"a", b"", 16),
        keys.self_mask_key(secret, b"bound", "d1"),
        keys.self_mask_key(secret, b"bound", "d2"),
        keys.self_mask_key(secret, b"other", "d1"),
        keys.pair_mask_key(secret, b"bound", "d1", "d2"),
        keys.pair_mask_key(secret, b"other", "d1", "d2"),
        keys.pair_mask_key(secret, b"bound", "d1", "d3"),
    ]
    assert len(set(found)) == len(found)
    assert keys.pair_mask_key(secret, b"bound", "d2", "d1") == found[8]


def test_both_ends_agree_and_low_order_points_are_refused() -> None:
    a, b = keys.AgreementKey(b"a" * 32), keys.AgreementKey(b"b" * 32)
    assert a.agree(b.public) == b.agree(a.public)
    assert keys.usable(a.public)
    for low in (
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ):
        assert not keys.usable(low)
        with pytest.raises(ValueError, match="shared key"):
            a.agree(low)


def test_sealed_shares_open_for_one_recipient_in_one_direction() -> None:
    shares = b"s" * 66
    sealed = keys.seal_shares(b"k" * 32, b"bound", "d1", "d2", shares)
    assert len(sealed) == SEALED_BYTES
    assert keys.open_shares(b"k" * 32, b"bound", "d1", "d2", sealed) == shares
    assert keys.open_shares(b"k" * 32, b"bound", "d2", "d1", sealed) is None
    assert keys.open_shares(b"k" * 32, b"other", "d1", "d2", sealed) is None
    assert keys.open_shares(b"j" * 32, b"bound", "d1", "d2", sealed) is None
    assert keys.open_shares(b"k" * 32, b"bound", "d1", "d2", sealed[:-1] + bytes([sealed[-1] ^ 1])) is None


def test_seed_commitments_bind_seed_context_and_device() -> None:
    found = {
        keys.commit_seed(s, c, d) for s in (b"1" * 32, b"2" * 32) for c in (b"c", b"d") for d in ("x", "y")
    }
    assert len(found) == 8


def test_seeded_entropy_is_a_stream() -> None:
    a, b = Entropy.seeded(b"x"), Entropy.seeded(b"x")
    assert a.token(5) + a.token(40) == b.token(45)
    assert Entropy.seeded(b"y").token(16) != Entropy.seeded(b"x").token(16)
    with pytest.raises(ConfigError, match="gave 3 bytes"):
        Entropy(lambda size: b"abc").token(4)


# ---- shamir --------------------------------------------------------------------------------------


def is_prime(n: int) -> bool:
    """Miller-Rabin with the first 40 primes as bases: error below 4**-40 for a number that was not made to fool it."""
    small = [p for p in range(2, 180) if all(p % q for q in range(2, p))][:40]
    if any(n % p == 0 for p in small):
        return n in small
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in small:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_prime_above_2_to_the_256() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME))


@settings(deadline=None, max_examples=50)
@given(secret=st.binary(min_size=32, max_size=32), n=st.integers(1, 12), data=st.data())
def test_any_t_shares_give_the_secret_back(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    points = data.draw(st.lists(st.integers(1, 300), min_size=n, max_size=n, unique=True))
    shares = dict(zip(points, deal(secret, points, t, Entropy.seeded(secret)), strict=True))
    chosen = tuple(data.draw(st.permutations(points))[:t])
    interpolation = Interpolation(chosen)
    assert interpolation.secret([shares[x] for x in chosen]) == secret
    for x in points:
        assert interpolation.share([shares[x] for x in chosen], x) == shares[x]
    if t > 1:
        fewer = Interpolation(chosen[1:])
        assert fewer.secret([shares[x] for x in chosen[1:]]) != secret


def test_t_minus_1_shares_fit_every_secret() -> None:
    """Perfect secrecy: for any secret there is a missing share that leads to it."""
    points = [1, 2, 3]
    shares = deal(b"\x11" * 32, points, 3, Entropy.seeded(b""))
    for other in (bytes(32), b"\xff" * 32, b"\x42" * 32):
        through = Interpolation((1, 2, 1000))
        # the share at 1000 of the polynomial through (0, other), (1, ·), (2, ·)
        weights = through.at_zero
        known = sum(w * int.from_bytes(s, "big") for w, s in zip(weights[:2], shares[:2], strict=True))
        missing = (int.from_bytes(other, "big") - known) * pow(weights[2], -1, PRIME) % PRIME
        assert through.secret([shares[0], shares[1], missing.to_bytes(33, "big")]) == other


def test_shares_outside_the_field_and_wrong_secrets() -> None:
    interpolation = Interpolation((1, 2))
    assert interpolation.secret([b"\xff" * 33, bytes(33)]) is None
    assert interpolation.share([b"\xff" * 33, bytes(33)], 3) is None
    largest = (PRIME - 1).to_bytes(33, "big")
    assert interpolation.secret([largest, largest]) is None  # p - 1 is no 32-byte string


def test_dealing_and_interpolating_need_proper_arguments() -> None:
    entropy = Entropy.seeded(b"")
    for points, t in (([1, 2], 3), ([1, 2], 0), ([1, 1], 1), ([0, 1], 1)):
        with pytest.raises(ProtocolError):
            deal(bytes(32), points, t, entropy)
    with pytest.raises(ProtocolError):
        deal(bytes(31), [1], 1, entropy)
    for points in ((), (1, 1), (0, 1)):
        with pytest.raises(ProtocolError):
            Interpolation(points)


@given(n=st.integers(2, 300), c=st.integers(0, 20))
def test_the_threshold_is_the_smallest_that_two_groups_cannot_reach_apart(n: int, c: int) -> None:
    t = threshold(n, c)
    assert 2 * t > n + c
    assert 2 * (t - 1) <= n + c


# ---- recovery ------------------------------------------------------------------------------------


def shares_of(secret: bytes, n: int, t: int) -> dict[str, tuple[int, bytes]]:
    points = list(range(1, n + 1))
    dealt = deal(secret, points, t, Entropy.seeded(secret + b"r"))
    return {f"d{point:02d}": (point, share) for point, share in zip(points, dealt, strict=True)}


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(3, 9))
def test_bad_shares_up_to_n_minus_t_are_survived_and_named(data: st.DataObject, n: int) -> None:
    t = data.draw(st.integers(2, n - 1))
    secret = b"\x05" * 32
    shares = shares_of(secret, n, t)
    wrong = data.draw(st.lists(st.sampled_from(sorted(shares)), max_size=n - t, unique=True))
    for device in wrong:
        shares[device] = (shares[device][0], b"\x00" + hashlib.sha256(device.encode()).digest())
    found = Recovery(t)
    assert found.secret(shares, secret.__eq__) == secret
    assert found.suspects <= set(wrong)
    if set(wrong) & set(sorted(shares)[:t]):
        assert found.suspects == set(wrong)


def test_too_few_or_too_many_bad_shares_give_nothing() -> None:
    secret = b"\x05" * 32
    shares = shares_of(secret, 5, 3)
    assert Recovery(3).secret(dict(list(shares.items())[:2]), secret.__eq__) is None
    for device in ("d01", "d02", "d04"):
        shares[device] = (shares[device][0], bytes(33))
    assert Recovery(3).secret(shares, secret.__eq__) is None


def test_the_effort_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "EFFORT", 50)
    tried = []

    def never(secret: bytes) -> bool:
        tried.append(secret)
        return False

    found = Recovery(6)
    shares = shares_of(b"\x05" * 32, 12, 6)
    assert found.secret(shares, never) is None
    assert found.secret(shares, never) is None
    assert len(tried) == 52  # one honest try for each secret, and the budget once


def test_a_device_that_lied_once_costs_no_further_effort() -> None:
    found = Recovery(3)
    for number in range(3):
        secret = bytes([number]) * 32
        shares = shares_of(secret, 5, 3) | {"d01": (1, bytes(33))}
        tries: list[bytes] = []
        assert found.secret(shares, lambda s, t=tries, w=secret: t.append(s) or s == w) == secret
        assert (len(tries) == 1) == (number > 0)


def test_every_subset_is_tried_once() -> None:
    tried = []
    found = Recovery(3)
    shares = {name: (at, bytes(33)) for at, name in enumerate("abcdef", 1)}
    list(itertools.starmap(tried.append, ((s,) for s in found._subsets(sorted(shares)))))
    assert len(tried) == len(set(tried)) == 20
    assert tried[0] == ("a", "b", "c")


# ---- graph ---------------------------------------------------------------------------------------


@given(n=st.integers(3, 40), degree=st.integers(2, 12), seed=st.binary(max_size=8))
def test_rings_are_regular_symmetric_and_connected(n: int, degree: int, seed: bytes) -> None:
    devices = names(n)
    if degree > n - 2 or degree % 2:
        with pytest.raises(ConfigError, match="no ring"):
            Ring.of(devices, degree, seed)
        return
    graph = Ring.of(devices, degree, seed).neighbours
    assert all(len(near) == degree and d not in near for d, near in graph.items())
    assert all(d in graph[other] for d, near in graph.items() for other in near)
    reached, todo = set(), [devices[0]]
    while todo:
        device = todo.pop()
        if device not in reached:
            reached.add(device)
            todo.extend(graph[device])
    assert reached == set(devices)


@given(n=st.integers(4, 30), half=st.integers(1, 6), data=st.data())
def test_the_thinnest_arc(n: int, half: int, data: st.DataObject) -> None:
    half = min(half, (n - 2) // 2)
    ring = Ring.of(names(n), 2 * half, b"a")
    there = data.draw(st.sets(st.sampled_from(names(n))))
    arcs = [{ring.order[(start + step) % n] for step in range(half)} for start in range(n)]
    assert ring.thinnest(there) == min(len(arc & there) for arc in arcs)


def test_graphs_have_one_encoding() -> None:
    devices = names(9)
    assert bits(complete(devices)) == bits(complete(reversed(devices)))
    rings = [Ring.of(devices, 4, seed) for seed in (b"a", b"b")]
    assert rings[0] == Ring.of(devices[::-1], 4, b"a")
    assert len({bits(rings[0].neighbours), bits(rings[1].neighbours), bits(complete(devices))}) == 3
    assert complete([DeviceId("a")]) == {"a": frozenset()}


# ---- roster --------------------------------------------------------------------------------------


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


# ---- messages ------------------------------------------------------------------------------------


def test_lists_of_the_largest_cohort_and_longest_names_fit_into_a_record() -> None:
    devices = [f"{i:064d}" for i in range(200)]
    entry = functools.partial(KeyEntry, cipher_public=bytes(32), mask_public=bytes(32), seed_commitment=bytes(32),
                              evaluated=False, front=0, back=0, signature=bytes(64))  # fmt: skip
    largest = KeyList(window=2**63 - 1, entries=tuple(entry(device=d) for d in devices))
    assert len(largest.encode()) <= MAX_CONTROL_BYTES
    assert KeyList.decode(largest.encode()) == largest
    sealed = Sealed(window=1, entries=tuple(SealedShare(device=d, ciphertext=bytes(82)) for d in devices))
    assert len(sealed.encode()) <= MAX_CONTROL_BYTES


def test_lists_have_one_order() -> None:
    one, two = (Upload(device=d, upload_sha256=bytes(32)) for d in ("a", "b"))
    for entries in ((two, one), (one, one)):
        with pytest.raises(ValidationError, match="ascending"):
            Included(window=0, entries=entries)
        unsorted = Included.model_construct(window=0, entries=entries).encode()
        with pytest.raises(Refused) as refused:
            Included.decode(unsorted)
        assert refused.value.reason is Reason.BAD_FIELD
    with pytest.raises(ValidationError, match="ascending"):
        SharesList(window=0, devices=("b", "a"))
