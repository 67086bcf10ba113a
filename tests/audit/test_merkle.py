from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    tree_root,
    verify_consistency,
    verify_inclusion,
)
from echelon.errors import CodecError

# The eight leaves and the roots of their first n that the Certificate Transparency projects test with.
LEAVES = [
    bytes.fromhex(h)
    for h in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def by_definition(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it is written there."""
    n = len(leaves)
    if n == 0:
        return hashlib.sha256(b"").digest()
    if n == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < n:
        k *= 2
    return hashlib.sha256(b"\x01" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def test_known_roots() -> None:
    tree = Frontier()
    assert (
        tree.root()
        == EMPTY_ROOT
        == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )
    for n, root in enumerate(ROOTS, 1):
        tree.append(LEAVES[n - 1])
        assert tree.root().hex() == root
        assert by_definition(LEAVES[:n]).hex() == root


@given(st.lists(st.binary(max_size=8), max_size=40))
def test_the_frontier_is_the_tree(leaves: list[bytes]) -> None:
    tree = Frontier()
    for leaf in leaves:
        tree.append(leaf)
    assert tree.root() == by_definition(leaves) == tree_root([leaf_hash(leaf) for leaf in leaves])
    assert len(tree.encode()) <= 8 + 32 * 6
    again = Frontier.decode(tree.encode())
    again.append(b"more")
    assert again.root() == by_definition([*leaves, b"more"])


@pytest.mark.slow
@given(st.integers(1, 33), st.data())
def test_inclusion(size: int, data: st.DataObject) -> None:
    hashes = [leaf_hash(bytes([i])) for i in range(size)]
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(hashes, index)
    root = tree_root(hashes)
    assert verify_inclusion(hashes[index], index, size, proof, root)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, root)
    assert not verify_inclusion(hashes[index], index, size, proof, b"\0" * 32)
    assert not verify_inclusion(hashes[index], index, size, [*proof, root], root)
    assert not verify_inclusion(hashes[index], size, size, proof, root)
    if proof:
        assert not verify_inclusion(hashes[index], index, size, proof[:-1], root)
        wrong = data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
        assert not verify_inclusion(hashes[index], wrong, size, proof, root)


@given(st.integers(1, 33), st.data())
def test_consistency(larger: int, data: st.DataObject) -> None:
    hashes = [leaf_hash(bytes([i])) for i in range(larger)]
    size = data.draw(st.integers(1, larger))
    old, new = tree_root(hashes[:size]), tree_root(hashes)
    proof = consistency_proof(hashes, size)
    assert verify_consistency(size, old, larger, new, proof)
    assert not verify_consistency(size, b"\0" * 32, larger, new, proof)
    assert not verify_consistency(size, old, larger, b"\0" * 32, proof)
    assert not verify_consistency(size, old, larger, new, [*proof, new])
    assert not verify_consistency(larger + 1, old, larger, new, proof)
    if proof:
        assert not verify_consistency(size, old, larger, new, proof[:-1])


def test_what_no_tree_has_is_refused() -> None:
    with pytest.raises(CodecError):
        inclusion_proof([b"\0" * 32], 1)
    with pytest.raises(CodecError):
        consistency_proof([b"\0" * 32], 0)
    with pytest.raises(CodecError):
        Frontier.decode((3).to_bytes(8, "big") + b"\0" * 32)


def test_a_growing_tree_gives_the_published_roots() -> None:
    tree = Tree()
    assert tree.root() == EMPTY_ROOT
    for leaf in LEAVES:
        tree.append_hash(leaf_hash(leaf))
    assert [tree.root(size).hex() for size in range(1, 9)] == ROOTS


@given(st.integers(1, 130), st.data())
def test_a_growing_tree_proves_as_the_definition_does(count: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(count)]
    tree = Tree()
    for leaf in leaves:
        tree.append_hash(leaf)
    size = data.draw(st.integers(1, count))
    smaller = data.draw(st.integers(1, size))
    assert tree.root(size) == tree_root(leaves[:size])
    assert tree.consistency(smaller, size) == consistency_proof(leaves[:size], smaller)
    with pytest.raises(CodecError):
        tree.consistency(size + 1, size)
    with pytest.raises(CodecError):
        tree.consistency(0, size)
    with pytest.raises(CodecError):
        tree.root(count + 1)
