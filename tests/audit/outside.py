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
from typing import Any

from cryptography.exceptions import InvalidSignature
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


def checkpoint(note: str, name: str, keys: list[bytes]) -> tuple[int, bytes]:
    """Size and root of a note that the key of its size signed, or a later one, under this name: the log's origin.

    `keys` has the key for each size up to the largest one, where the newest counts for every smaller size, too.
    """
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    origin, size, root = lines(text)[:3]
    assert origin == name
    for public in keys[int(size) - 1 :]:
        if signed_by(public, name, text, signatures):
            return int(size), plain64(root)
    raise AssertionError("the note has no signature of the log")


def signed_by(public: bytes, name: str, text: str, signatures: str) -> bool:
    wanted = hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]
    for line in lines(signatures):
        dash, who, blob = line.split(" ")
        raw = plain64(blob)
        if (dash, who, raw[:4]) == ("\u2014", name, wanted):
            Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], text.encode())
            return True
    return False


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


class Line:
    """The keys of one actor.

    Of each: the index of the change that began it (-1: the manifest did), whether that revoked the one before, and how
    many of a gate's deltas had been read by then.
    """

    def __init__(self, public: bytes) -> None:
        self.keys: list[tuple[bytes, int, bool, int]] = [(public, -1, False, 0)]

    def follow(self, change: dict[str, Any], kind: str, operator: bytes, actor: tuple[str, int]) -> None:
        """Take a change, if it continues the line and those who may say so signed it."""
        said = change["statement"]
        assert (said["role"], said["place"]) == actor
        assert (said["run"], said["number"], said["former"]) == (
            change["run"],
            len(self.keys),
            self.keys[-1][0],
        )
        fields = (kind, said["run"], *actor, said["number"], said["former"], said["public"])
        signed = b"echelon key change v1\x00" + bytes([0x97]) + b"".join(packed(one) for one in fields)
        author = operator if kind == "key.end" else said["former"]
        assert author != bytes(32), "nobody signs nothing"
        assert kind in ("key.next", "key.end")
        assert said["public"] != bytes(32) or kind == "key.end"
        Ed25519PublicKey.from_public_bytes(author).verify(said["signature"], signed)
        if said["public"] != bytes(32):
            Ed25519PublicKey.from_public_bytes(said["public"]).verify(said["proof"], signed)
        self.keys.append((said["public"], change["index"], kind == "key.end", change["read"]))

    def at(self, index: int) -> bytes:
        """The key that signs leaf `index` of the log."""
        return next(public for public, since, _, _ in reversed(self.keys) if since <= index)

    def delta(self, envelope: bytes, place: int) -> dict[str, Any]:
        """The delta in an envelope that a key signed which counts at that place of the gate's log."""
        for number, (public, since, _, read) in enumerate(self.keys):
            try:
                found = unpack(dsse(envelope, public)) if public != bytes(32) else None
            except InvalidSignature:
                continue
            assert isinstance(found, dict)
            assert not number or (found["seen_size"] > since and place >= read)
            for _, after, revokes, upto in self.keys[number + 1 :]:
                assert place < upto or (not revokes and found["seen_size"] <= after)
            return found
        raise AssertionError("a delta that no key of its gate signed")


def packed(value: object) -> bytes:
    """The one encoding in msgpack of what a change's signatures cover: bytes, short texts, numbers from 0."""
    if isinstance(value, bytes):
        return b"\xc4" + bytes([len(value)]) + value
    if isinstance(value, str):
        return bytes([0xA0 | len(value)]) + value.encode()
    assert isinstance(value, int)
    forms = ((1 << 7, ">B", b""), (1 << 8, ">B", b"\xcc"), (1 << 16, ">H", b"\xcd"), (1 << 32, ">I", b"\xce"))
    return next(head + struct.pack(form, value) for limit, form, head in forms if value < limit)


def lines_of(folder: Path, manifest: dict[str, Any]) -> dict[tuple[str, int], Line]:
    """Everybody's keys, as the manifest and the proof's changes name them; that the log has them is not checked yet."""
    found = {("controller", 0): Line(bytes.fromhex(manifest["controller_public"]))}
    for place, terms in enumerate(manifest["boundaries"]):
        found["gate", place] = Line(bytes.fromhex(terms["gate_public"]))
    files = folder.glob("key-change-*.dsse.json")
    for file in sorted(files, key=lambda one: int(one.name.split("-")[2].split(".")[0])):
        sealed = json.loads(file.read_bytes())
        kind = sealed["payloadType"].removeprefix("application/vnd.echelon.").rpartition(".v")[0]
        change = unpack(plain64(sealed["payload"]))
        assert isinstance(change, dict)
        assert file.name == f"key-change-{change['index']}.dsse.json"
        assert change["run"].hex() == manifest["run"]
        actor = change["statement"]["role"], change["statement"]["place"]
        found[actor].follow(change, kind, bytes.fromhex(manifest["operator_public"]), actor)
        # That record is signed with the key that the controller has behind it.
        dsse(file.read_bytes(), found["controller", 0].keys[-1][0])
    return found


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
    keys = lines_of(folder, manifest)
    controller = keys["controller", 0]
    assert unpack(dsse(genesis_envelope, controller.at(0))) == unchecked
    assert unchecked["run"].hex() == manifest["run"]

    name = f"echelon/{manifest['run']}/global"
    size = int(lines(read("checkpoint.note").decode())[1])
    signers = [controller.at(index) for index in range(size)]
    _, root = checkpoint(read("checkpoint.note").decode(), name, signers)

    def included(file: str, envelope: bytes) -> int:
        head, note = read(file).decode().split("\n\n", 1)
        first, where, *path = head.split("\n")
        assert first == "c2sp.org/tlog-proof@v1"
        label, index = where.split(" ")
        assert label == "index"
        assert checkpoint(note, name, signers) == (size, root)
        hashes = [plain64(one) for one in path]
        assert 0 <= int(index) < size
        assert root_by_path(leaf_of(envelope), int(index), size, hashes) == root, file
        return int(index)

    assert included("genesis.tlog-proof", genesis_envelope) == 0
    envelope = read("commit.dsse.json")
    index = included("commit.tlog-proof", envelope)
    commit = unpack(dsse(envelope, controller.at(index)))
    assert isinstance(commit, dict)
    assert commit["index"] == index
    for file in folder.glob("key-change-*.dsse.json"):
        place = included(f"{file.name.removesuffix('.dsse.json')}.tlog-proof", file.read_bytes())
        assert file.name == f"key-change-{place}.dsse.json"
    digest = read("payload.sha256").decode().split()[0]
    assert commit["payload"]["sha256"].hex() == digest

    about = json.loads(read("index.json"))
    consistent = 0
    for file in sorted(folder.glob("consistency-*.txt")):
        head, note = file.read_text().split("\n\n", 1)
        label, *path = head.split("\n")
        old = int(label.removeprefix("old "))
        assert checkpoint(note, name, signers) == (size, root)
        earlier = folder / f"checkpoint-{old}.note"
        if earlier.exists():
            known = checkpoint(earlier.read_text(), name, signers)
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
        hashes = [bytes.fromhex(one) for one in proof["hashes"]]
        assert (
            root_by_path(leaf_of(delta_envelope), proof["logIndex"], head["size"], hashes) == head["root"]
        ), stem
        delta = keys["gate", merged["boundary"]].delta(delta_envelope, proof["logIndex"])
        assert (delta["boundary"], delta["seq"]) == (merged["boundary"], merged["seq"])
        deltas += 1
    return {"index": index, "size": size, "consistent": consistent, "deltas": deltas, "payload": digest}


if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))))
