"""Merkle trees of RFC 6962, section 2.1: SHA-256, leaves under 0x00, nodes under 0x01, split at the largest
power of 2.

Kept by hand because an auditor must be able to read every line that a verdict rests on, and it is a page of hashing.
Proof checking follows RFC 9162, sections 2.1.3.2 and 2.1.4.2, which state the algorithms for the same trees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from echelon.errors import CodecError

EMPTY_ROOT = hashlib.sha256(b"").digest()
MAX_SIZE = 1 << 63


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 || leaf), 32 bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A growing tree in O(log n) memory: the roots of its complete subtrees, largest first, one per set bit
    of n."""

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf (its bytes, not their hash)."""
        self.append_hash(leaf_hash(leaf))

    def append_hash(self, node: bytes) -> None:
        """Add a leaf whose hash (32 bytes) is known."""
        size = self.size
        while size & 1:
            node = node_hash(self._roots.pop(), node)
            size >>= 1
        self._roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        """The root, 32 bytes; of the empty tree the hash of no bytes."""
        if not self._roots:
            return EMPTY_ROOT
        node = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            node = node_hash(left, node)
        return node

    def encode(self) -> bytes:
        """Size (8 bytes, big-endian), then the subtree roots."""
        return self.size.to_bytes(8, "big") + b"".join(self._roots)

    @classmethod
    def decode(cls, data: bytes) -> Frontier:
        """Read what `encode` wrote.

        Raises:
            CodecError: the number of roots does not fit the size.
        """
        frontier = cls()
        frontier.size = int.from_bytes(data[:8], "big")
        frontier._roots = [data[at : at + 32] for at in range(8, len(data), 32)]
        if len(data) != 8 + 32 * frontier.size.bit_count():
            raise CodecError(f"{len(data)} bytes are no state of a tree of {frontier.size} leaves")
        return frontier


class Tree:
    """A growing tree that proves: it keeps the roots of all complete subtrees, 64 bytes for each leaf.

    Appending costs one hash on average; a root or a proof of n leaves costs O(log² n) hashes.
    """

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]
        """Level k holds the roots of the complete subtrees of 2**k leaves, from left to right."""

    def __len__(self) -> int:
        return len(self._levels[0])

    def append_hash(self, node: bytes) -> None:
        """Add a leaf by its hash, 32 bytes."""
        level = 0
        self._levels[0].append(node)
        while len(self._levels[level]) % 2 == 0:
            if level + 1 == len(self._levels):
                self._levels.append([])
            left, right = self._levels[level][-2:]
            self._levels[level + 1].append(node_hash(left, right))
            level += 1

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves, 32 bytes; of all if it is left out.

        Raises:
            CodecError: there are fewer leaves.
        """
        size = self._known(size)
        return self._range(0, size) if size else EMPTY_ROOT

    def consistency(self, smaller: int, size: int | None = None) -> list[bytes]:
        """PROOF(smaller, first `size` leaves): that the tree of the first `smaller` leaves is a prefix.

        Args:
            smaller: 0 < smaller ≤ size, else CodecError.
            size: of the larger tree; all leaves if it is left out.
        """
        size = self._known(size)
        if not 0 < smaller <= size:
            raise CodecError(f"a tree of {size} leaves has no proof from size {smaller}")
        proof: list[bytes] = []
        start, end, whole = 0, size, True
        while start + smaller < end:
            middle = start + _split(end - start)
            if start + smaller <= middle:
                proof.append(self._range(middle, end))
                end = middle
            else:
                proof.append(self._range(start, middle))
                smaller -= middle - start
                start, whole = middle, False
        if not whole:
            proof.append(self._range(start, end))
        return proof[::-1]

    def _known(self, size: int | None) -> int:
        if size is None:
            return len(self)
        if not 0 <= size <= len(self):
            raise CodecError(f"a tree of {len(self)} leaves has no first {size}")
        return size

    def _range(self, start: int, end: int) -> bytes:
        """The root of leaves start to end, where start is a multiple of the largest power of 2 below the length."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(count)
        return node_hash(self._range(start, middle), self._range(middle, end))


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def tree_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of leaf hashes (32 bytes each), in O(n)."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return node_hash(tree_root(leaves[:middle]), tree_root(leaves[middle:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(index, leaves), from the leaf's sibling upwards.

    Args:
        leaves: leaf hashes of the whole tree.
        index: 0 ≤ index < len(leaves), else CodecError.
    """
    if not 0 <= index < len(leaves):
        raise CodecError(f"leaf {index} is not in a tree of {len(leaves)}")
    if len(leaves) == 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*inclusion_proof(leaves[:middle], index), tree_root(leaves[middle:])]
    return [*inclusion_proof(leaves[middle:], index - middle), tree_root(leaves[:middle])]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """PROOF(size, leaves): that the tree of the first `size` leaves is a prefix of this one.

    Args:
        leaves: leaf hashes of the whole tree.
        size: 0 < size ≤ len(leaves), else CodecError.
    """
    if not 0 < size <= len(leaves):
        raise CodecError(f"a tree of {len(leaves)} leaves has no proof from size {size}")
    return _subproof(leaves, size, True)


def _subproof(leaves: Sequence[bytes], size: int, whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [tree_root(leaves)]
    middle = _split(len(leaves))
    if size <= middle:
        return [*_subproof(leaves[:middle], size, whole), tree_root(leaves[middle:])]
    return [*_subproof(leaves[middle:], size - middle, False), tree_root(leaves[:middle])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that a leaf hash stands at `index` of the tree with that size and root.

    Args:
        leaf: hash of the leaf, 32 bytes.
        index: of the leaf, from 0.
        size: leaves of the tree.
        proof: hashes from the leaf's sibling upwards (RFC 9162, section 2.1.3).
        root: hash of the tree, 32 bytes.
    """
    if not 0 <= index < size <= MAX_SIZE:
        return False
    first, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if first & 1 or first == last:
            node = node_hash(sibling, node)
            while first and not first & 1:
                first >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        first >>= 1
        last >>= 1
    return last == 0 and node == root


def verify_consistency(
    size: int, root: bytes, larger: int, larger_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the proof shows that the tree (larger, larger_root) begins with the tree (size, root).

    Args:
        size: leaves of the smaller tree.
        root: its hash, 32 bytes.
        larger: leaves of the larger tree.
        larger_root: its hash, 32 bytes.
        proof: hashes as RFC 9162, section 2.1.4, orders them.
    """
    if not 0 < size <= larger <= MAX_SIZE:
        return False
    if size == larger:
        return not proof and root == larger_root
    path = list(proof)
    if size & (size - 1) == 0:
        path.insert(0, root)
    if not path:
        return False
    first, last = size - 1, larger - 1
    while first & 1:
        first >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while first and not first & 1:
                first >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        first >>= 1
        last >>= 1
    return last == 0 and old == root and new == larger_root
