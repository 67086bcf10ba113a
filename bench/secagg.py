"""Secure aggregation against raw AES-128-CTR of the same number of bytes, in one process and one run.

    python bench/secagg.py [--dim 1000000] [--devices 51] [--repeat 5] [--json FILE]

device: one device's `masked_input` (opening the shares, its own mask, one mask per peer), against the
keystream bytes of those masks. server: `finish` with a tenth of the cohort dropped after sharing (recovering
secrets, key agreement, taking the masks off), against the keystream bytes that it takes off. The control
writes with `update_into` from a buffer of zeros into a reused buffer, in chunks of 1 MiB, one cipher per
mask.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cryptography
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from echelon.messages.envelope import Signer
from echelon.messages.handshake import Included
from echelon.messages.wire import DeviceId
from echelon.secagg.client import Client
from echelon.secagg.context import Context, Member, threshold
from echelon.secagg.entropy import Entropy
from echelon.secagg.graph import complete
from echelon.secagg.roster import Roster, RosterEntry
from echelon.secagg.server import Server

TARGET = 1.5
CHUNK_BYTES = 1 << 20  # the control's: the fastest of those that were tried


def raw_keystream(masks: int, size: int) -> float:
    """Seconds for AES-128-CTR keystream of `masks` times `size` bytes."""
    zeros, buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES + 16)
    begin = time.perf_counter()
    for mask in range(masks):
        stream = Cipher(algorithms.AES(mask.to_bytes(16, "big")), modes.CTR(bytes(16))).encryptor()
        for start in range(0, size, CHUNK_BYTES):
            stream.update_into(zeros[: min(CHUNK_BYTES, size - start)], buffer)
    return time.perf_counter() - begin


def timed(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def signer_of(device: str) -> Signer:
    """A fixed identity for a device's name."""
    return Signer(hashlib.sha256(device.encode()).digest())


class Cohort:
    """A window of `n` devices on the complete graph, up to its shares list."""

    def __init__(self, n: int, length: int) -> None:
        self.devices = [DeviceId(f"d{i:04d}") for i in range(n)]
        self.context = Context(
            run=bytes(16), window=1, version=1, members=tuple(Member(d, 1, 1, 0) for d in self.devices),
            bases_root=bytes(32), terms_sha256=bytes(32), neighbours=complete(self.devices),
            threshold=threshold(n, 0), k_min=2, colluding=0, weight_max=1, clip_micro=1, scale_bits=1, length=length,
        )  # fmt: skip
        entries = [
            RosterEntry(device=d, public=signer_of(d).public, slot=i) for i, d in enumerate(self.devices)
        ]
        keys = {"aggregator": signer_of("aggregator").public, "gate": signer_of("gate").public}
        roster = Roster.enrol("bench", entries, signer_of("enrolment"), **keys)
        self.server = Server(self.context, roster)
        self.clients = {
            d: Client(self.context, d, signer_of(d), roster, Entropy(os.urandom)) for d in self.devices
        }
        for device, client in self.clients.items():
            self.server.on_advertise(device, client.advertise())
        keys = self.server.close_keys()
        for device, client in self.clients.items():
            self.server.on_sealed(device, client.share_keys(keys))
        self.shares, self.deliveries = self.server.close_shares()

    def to_unmask(self, dropped: int) -> Included:
        """Uploads, signatures and answers of all but the last `dropped` devices; what is left is `finish`."""
        length = self.context.length
        vector = np.arange(length, dtype=np.uint32)
        kept = self.devices[: len(self.devices) - dropped]
        for device in kept:
            masked = self.clients[device].masked_input(self.shares, self.deliveries[device], vector)
            self.server.on_masked(device, masked, hashlib.sha256(masked.data).digest())
        included = self.server.close_masked()
        for device in kept:
            self.server.on_consistency(device, self.clients[device].consistency(included))
        signatures = self.server.close_consistency()
        for device in kept:
            self.server.on_unmask(device, self.clients[device].unmask(signatures))
        return included


def measure(dim: int, devices: int, repeat: int) -> dict[str, object]:
    """Both figures, as medians of `repeat` pairs of control and work."""
    size = 4 * dim
    vector = np.arange(dim, dtype=np.uint32)
    pairs: dict[str, list[tuple[float, float]]] = {"device": [], "server": []}
    cohort = Cohort(devices, dim)
    for turn in range(repeat):
        me = cohort.devices[turn % devices]
        client = copy.copy(cohort.clients[me])  # its state moves on with the call, the cohort's does not
        control = raw_keystream(devices, size)
        work = timed(lambda c=client, m=me: c.masked_input(cohort.shares, cohort.deliveries[m], vector))  # type: ignore[misc]
        pairs["device"].append((control, work))
    dropped = devices // 10
    included = devices - dropped
    masks = included + dropped * included
    cohort.to_unmask(dropped)
    expected = np.arange(dim, dtype=np.uint32) * np.uint32(included)
    for _ in range(repeat):
        server = copy.copy(cohort.server)
        server._total, server._secrets, server._tried = server._total.copy(), {}, 0
        control = raw_keystream(masks, size)
        pairs["server"].append((control, timed(server.finish)))
        if not np.array_equal(server.finish().total, expected):
            raise SystemExit("the sum is wrong: the figures mean nothing")
    found: dict[str, object] = {}
    for name, values in pairs.items():
        bytes_ = size * (devices if name == "device" else masks)
        found[name] = {
            "keystream_bytes": bytes_,
            "control_s": statistics.median(control for control, _ in values),
            "work_s": statistics.median(work for _, work in values),
            "ratio": statistics.median(work / control for control, work in values),
            "target_ratio": TARGET,
        }
    return found


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="Secure aggregation against raw AES-128-CTR.")
    parser.add_argument("--dim", type=int, default=1_000_000, help="ring coordinates of a masked vector")
    parser.add_argument("--devices", type=int, default=51, help="cohort; a device masks with one less peer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = measure(options.dim, options.devices, options.repeat)
    for name in ("device", "server"):
        row = figures[name]
        assert isinstance(row, dict)
        print(
            f"{name}: {row['keystream_bytes'] / 1e6:.0f} MB of masks, raw {row['control_s']:.3f} s, "
            f"protocol {row['work_s']:.3f} s, ratio {row['ratio']:.2f} (target {TARGET})"
        )
    if options.json is not None:
        document = {
            "benchmark": "secagg",
            "command": f"python bench/secagg.py --dim {options.dim} --devices {options.devices} "
            f"--repeat {options.repeat}",
            "machine": {"machine": platform.machine(), "system": platform.system(), "cpus": os.cpu_count()},
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "cryptography": cryptography.__version__,
            },
            "figures": figures,
        }
        options.json.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
