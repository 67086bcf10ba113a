"""Checks the proof of a commit as somebody does who has none of our code: `outside.py FOLDER PIN`.

Written from RFC 6962 (section 2.1), C2SP's signed-note, tlog-checkpoint and tlog-proof, DSSE's protocol, and the
format of msgpack. The standard library and `cryptography`, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def lines(text: str) -> list[str]:
    """Lines of a text whose last one has its newline, too. (`splitlines` would take other characters for newlines.)"""
    assert text.endswith("\n")
    return text[:-1].split("\n")


def plain64(text: str) -> bytes:
    """Base64 in its one encoding (RFC 4648, section 3.5: the spare bits are zero)."""
    found = base64.b64decode(text, validate=True)
    assert base64.b64encode(found).decode() == text
    return found


def unpack(data: bytes) -> object:
    value, end = _item(data, 0)
    assert end == len(data), "bytes behind the message"
    return value


def _item(data: bytes, at: int) -> tuple[object, int]:
    head, at = data[at], at + 1
    if head < 0x80:
        return head, at
    if head < 0x90:
        return _pairs(data, at, head & 0x0F)
    if head < 0xA0:
        return _items(data, at, head & 0x0F)
    if head < 0xC0:
        return data[at : at + (head & 0x1F)].decode(), at + (head & 0x1F)
    if head >= 0xE0:
        return head - 256, at
    if head in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[head], at
    if head in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
        width = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}[head]
        size = int.from_bytes(data[at : at + width], "big")
        part = data[at + width : at + width + size]
        return (part if head < 0xD0 else part.decode()), at + width + size
    if 0xCC <= head <= 0xD3:
        form = {
            0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
        }[head]  # fmt: skip
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    width = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}[head]
    count = int.from_bytes(data[at : at + width], "big")
    return (_items if head < 0xDE else _pairs)(data, at + width, count)


def _items(data: bytes, at: int, count: int) -> tuple[list[object], int]:
    found = []
    for _ in range(count):
        value, at = _item(data, at)
        found.append(value)
    return found, at


def _pairs(data: bytes, at: int, count: int) -> tuple[dict[object, object], int]:
    flat, at = _items(data, at, 2 * count)
    return dict(zip(flat[::2], flat[1::2], strict=True)), at


def dsse(envelope: bytes, public: bytes) -> bytes:
    """The payload of an envelope that this key signed."""
    fields = json.loads(envelope)
    payload = plain64(fields["payload"])
    kind = fields["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (signature,) = fields["signatures"]
    Ed25519PublicKey.from_public_bytes(public).verify(plain64(signature["sig"]), signed)
    return payload


def checkpoint(note: str, name: str, public: bytes) -> tuple[int, bytes]:
    """Size and root of a note that this key signed under this name, which is also the log's origin."""
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    wanted = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    for line in lines(signatures):
        dash, who, blob = line.split(" ")
        raw = plain64(blob)
        if (dash, who, raw[:4]) == ("\u2014", name, wanted):
            Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], text.encode())
            break
    else:
        raise AssertionError("the note has no signature of the log")
    origin, size, root = lines(text)[:3]
    assert origin == name
    return int(size), plain64(root)


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(size: int) -> int:
    """The largest power of two below it."""
    k = 1
    while 2 * k < size:
        k *= 2
    return k


def root_by_path(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that the audit path PATH(index, D[size]) gives, by the recursion of section 2.1.1."""
    if size == 1:
        assert not path
        return leaf
    k = split(size)
    if index < k:
        return node(root_by_path(leaf, index, k, path[:-1]), path[-1])
    return node(path[-1], root_by_path(leaf, index - k, size - k, path[:-1]))


def roots_by_proof(
    old: int, size: int, proof: list[bytes], whole: bool, old_root: bytes
) -> tuple[bytes, bytes]:
    """Both roots that SUBPROOF(old, D[size], whole) gives, by the recursion of section 2.1.2."""
    if old == size:
        if whole:
            assert not proof
            return old_root, old_root
        (same,) = proof
        return same, same
    k = split(size)
    if old <= k:
        first, second = roots_by_proof(old, k, proof[:-1], whole, old_root)
        return first, node(second, proof[-1])
    first, second = roots_by_proof(old - k, size - k, proof[:-1], False, old_root)
    return node(proof[-1], first), node(proof[-1], second)


def leaf_of(envelope: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + envelope).digest()


def check(folder: Path, pin: bytes) -> dict[str, object]:
    """Everything that the folder proves, from the pinned SHA-256 of the genesis record's envelope alone."""

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    genesis_envelope, sealed = read("genesis.dsse.json"), read("manifest.dsse.json")
    assert hashlib.sha256(genesis_envelope).digest() == pin, "another genesis than the pinned one"
    unchecked = unpack(plain64(json.loads(genesis_envelope)["payload"]))
    assert isinstance(unchecked, dict)
    assert hashlib.sha256(sealed).digest() == unchecked["manifest_sha256"]
    manifest = json.loads(plain64(json.loads(sealed)["payload"]))
    assert dsse(sealed, bytes.fromhex(manifest["operator_public"]))
    controller = bytes.fromhex(manifest["controller_public"])
    assert unpack(dsse(genesis_envelope, controller)) == unchecked
    assert unchecked["run"].hex() == manifest["run"]

    name = f"echelon/{manifest['run']}/global"
    size, root = checkpoint(read("checkpoint.note").decode(), name, controller)

    def included(file: str, envelope: bytes) -> int:
        head, note = read(file).decode().split("\n\n", 1)
        first, where, *path = head.split("\n")
        assert first == "c2sp.org/tlog-proof@v1"
        label, index = where.split(" ")
        assert label == "index"
        assert checkpoint(note, name, controller) == (size, root)
        hashes = [plain64(one) for one in path]
        assert 0 <= int(index) < size
        assert root_by_path(leaf_of(envelope), int(index), size, hashes) == root, file
        return int(index)

    assert included("genesis.tlog-proof", genesis_envelope) == 0
    envelope = read("commit.dsse.json")
    index = included("commit.tlog-proof", envelope)
    commit = unpack(dsse(envelope, controller))
    assert isinstance(commit, dict)
    assert commit["index"] == index
    digest = read("payload.sha256").decode().split()[0]
    assert commit["payload"]["sha256"].hex() == digest

    about = json.loads(read("index.json"))
    consistent = 0
    for file in sorted(folder.glob("consistency-*.txt")):
        head, note = file.read_text().split("\n\n", 1)
        label, *path = head.split("\n")
        old = int(label.removeprefix("old "))
        assert checkpoint(note, name, controller) == (size, root)
        earlier = folder / f"checkpoint-{old}.note"
        if earlier.exists():
            known = checkpoint(earlier.read_text(), name, controller)
            assert known[0] == old
            old_root = known[1]
        else:
            old_root = bytes.fromhex(about["roots"][str(old)])
        hashes = [plain64(one) for one in path]
        assert roots_by_proof(old, size, hashes, True, old_root) == (old_root, root), file.name
        consistent += 1

    deltas = 0
    for merged in commit.get("merged", ()):
        terms = manifest["boundaries"][merged["boundary"]]
        (head,) = [one for one in commit["heads"] if one["boundary"] == merged["boundary"]]
        stem = f"delta-{terms['name']}-{merged['seq']}"
        delta_envelope = read(f"{stem}.dsse.json")
        proof = json.loads(read(f"{stem}.inclusion.json"))
        assert (proof["treeSize"], bytes.fromhex(proof["rootHash"])) == (head["size"], head["root"])
        path = [bytes.fromhex(one) for one in proof["hashes"]]
        assert root_by_path(leaf_of(delta_envelope), proof["logIndex"], head["size"], path) == head["root"], (
            stem
        )
        delta = unpack(dsse(delta_envelope, bytes.fromhex(terms["gate_public"])))
        assert isinstance(delta, dict)
        assert (delta["boundary"], delta["seq"]) == (merged["boundary"], merged["seq"])
        deltas += 1
    return {"index": index, "size": size, "consistent": consistent, "deltas": deltas, "payload": digest}


if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))))
