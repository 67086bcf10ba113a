"""Golden vectors: the bytes of one whole window. A change of them is a change of the protocol, and needs a
new version.

`ECHELON_UPDATE_GOLDEN=1 pytest tests/secagg/test_golden.py` writes them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from echelon.messages.wire import Message
from echelon.secagg import keys
from echelon.secagg.entropy import Entropy
from echelon.secagg.graph import Ring, bits
from echelon.secagg.prg import keystream
from echelon.secagg.ring import Codec, pack_vector
from echelon.secagg.shamir import deal
from tests.secagg.federation import Window, context_for, names, roster_of

GOLDEN = Path(__file__).parent / "golden" / "window.json"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def produced() -> dict[str, object]:
    window = Window(context_for(names(5), colluding=1, weights={"d001": 2}), seed=b"golden")
    result = window.run((), (), ["d003"])
    bound = window.context.bound(window.decisions[0])  # type: ignore[arg-type]
    vector = np.array([0.5, -0.25, 1e-3, 0.0, -0.7], np.float32)
    encoded = Codec(1.0, 20, 64).encode(vector, 3, 7, bytes(range(32)))
    return {
        "context": window.context.digest.hex(),
        "bound": bound.hex(),
        "roster": roster_of(names(5)).digest.hex(),
        "decisions": {
            d.kind: d.encode().hex() if d.kind != "roster" else sha(d.encode()) for d in window.decisions
        },
        "inputs": [
            [d, m.kind, sha(m.encode())]
            if isinstance(m, Message)
            else [d, "masked", sha(m.astype("<u4").tobytes())]
            for d, m in window.inputs
        ],
        "deliveries": {d: sha(m.encode()) for d, m in window.deliveries.items()},
        "sum": result.total.astype("<u4").tobytes().hex(),
        "keystream": keystream(bytes(range(16)), 6).astype("<u4").tobytes().hex(),
        "self_mask_key": keys.self_mask_key(b"s" * 32, b"b" * 32, "d000").hex(),
        "pair_mask_key": keys.pair_mask_key(b"s" * 32, b"b" * 32, "d001", "d000").hex(),
        "sealed": keys.seal_shares(b"s" * 32, b"b" * 32, "d000", "d001", bytes(66)).hex(),
        "commitment": keys.commit_seed(b"s" * 32, b"c" * 32, "d000").hex(),
        "shares": [s.hex() for s in deal(b"\x2a" * 32, [1, 2, 3], 2, Entropy.seeded(b"golden"))],
        "packed": pack_vector(encoded, (5, 2**40 + 3)).astype("<u4").tobytes().hex(),
        "graph": bits(Ring.of(names(9), 4, b"golden").neighbours).hex(),
    }


def test_golden_vectors() -> None:
    found = produced()
    if os.environ.get("ECHELON_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(GOLDEN.read_text())
