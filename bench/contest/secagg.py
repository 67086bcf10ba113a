"""What secure aggregation costs: a device's and an aggregator's share, against raw keystream and a plain sum."""

from __future__ import annotations

import copy
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from echelon.errors import EchelonError
from echelon.messages.envelope import Signer
from echelon.messages.handshake import Included
from echelon.messages.wire import DeviceId
from echelon.secagg.client import Client
from echelon.secagg.context import Context, ContextMember, threshold
from echelon.secagg.entropy import Entropy
from echelon.secagg.prg import RingVector
from echelon.secagg.ring import RING_BITS
from echelon.secagg.roster import Roster, RosterEntry
from echelon.secagg.server import Server

Clock = Callable[[], float]
CHUNK_BYTES = 1 << 20  # the control's: the fastest of those that were tried


def raw_keystream(masks: int, size: int, clock: Clock = time.perf_counter) -> float:
    """Seconds for AES-128-CTR keystream of `masks` times `size` bytes."""
    zeros, buffer = memoryview(bytes(CHUNK_BYTES)), bytearray(CHUNK_BYTES + 16)
    begin = clock()
    for mask in range(masks):
        stream = Cipher(algorithms.AES(mask.to_bytes(16, "big")), modes.CTR(bytes(16))).encryptor()
        for start in range(0, size, CHUNK_BYTES):
            stream.update_into(zeros[: min(CHUNK_BYTES, size - start)], buffer)
    return clock() - begin


def plain_sum(devices: int, dim: int, clock: Clock = time.perf_counter) -> float:
    """Seconds to add the vectors of all devices, uint32[dim] each, where everybody is seen."""
    vector, total = np.arange(dim, dtype=np.uint32), np.zeros(dim, dtype=np.uint32)
    begin = clock()
    for _ in range(devices):
        total += vector
    return clock() - begin


def timed(action: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds that a call takes."""
    begin = clock()
    action()
    return clock() - begin


def signer_of(device: str) -> Signer:
    """A fixed identity for a device's name."""
    return Signer(hashlib.sha256(device.encode()).digest())


class MeasuredCohort:
    """A window of `n` devices on the complete graph, up to its shares list."""

    def __init__(self, n: int, length: int, ring_bits: int = RING_BITS) -> None:
        self.devices = [DeviceId(f"d{i:04d}") for i in range(n)]
        self.context = Context(
            run=bytes(16), window=1, version=1, members=tuple(ContextMember(d, 1, 1, 0) for d in self.devices),
            bases_root=bytes(32), terms_sha256=bytes(32),
            threshold=threshold(n, 0), k_min=2, colluding=0, weight_max=1, clip_micro=1, scale_bits=1, length=length,
            ring_bits=ring_bits,
        )  # fmt: skip
        entries = [
            RosterEntry(device=d, public=signer_of(d).public, slot=i) for i, d in enumerate(self.devices)
        ]
        roster = Roster.enrol(
            "bench",
            entries,
            signer_of("enrolment"),
            aggregator=signer_of("aggregator").public,
            gate=signer_of("gate").public,
        )
        self.server = Server(self.context, roster)
        self.clients = {
            d: Client(self.context, d, signer_of(d), roster, Entropy(os.urandom)) for d in self.devices
        }
        for device, client in self.clients.items():
            self.server.on_advertise(device, client.advertise())
        keys_list = self.server.close_keys()
        for device, client in self.clients.items():
            self.server.on_sealed(device, client.share_keys(keys_list))
        self.shares, self.deliveries = self.server.close_shares()

    def vector(self) -> RingVector:
        """What every device masks: 0, 1, 2, … on the ring."""
        return np.arange(self.context.length).astype(self.context.dtype)

    def to_unmask(self, dropped: int) -> Included:
        """Uploads, signatures and answers of all but the last `dropped` devices; what is left is `finish`."""
        vector = self.vector()
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


def measure(
    dim: int,
    devices: int,
    repeat: int,
    dropped: int | None = None,
    *,
    ring_bits: int = RING_BITS,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:
    """Seconds of a device, of the aggregator, and of their controls: medians of `repeat` turns side by side.

    Args:
        dim: coordinates of a masked vector.
        devices: cohort; a device masks with its own mask and one per peer.
        repeat: turns.
        dropped: devices that vanish after sharing; None: a tenth.
        ring_bits: bits of a masked coordinate.
        clock: seconds of what; on the clock by default.

    Raises:
        EchelonError: the unmasked sum is wrong, so the figures would mean nothing.
    """
    size = ring_bits // 8 * dim
    dropped = devices // 10 if dropped is None else dropped
    turns: dict[str, list[float]] = {
        name: [] for name in ("device_prg_s", "device_s", "server_prg_s", "server_s", "plain_s")
    }
    cohort = MeasuredCohort(devices, dim, ring_bits)
    for turn in range(repeat):
        me = cohort.devices[turn % devices]
        client = copy.copy(cohort.clients[me])  # its state moves on with the call, the cohort's does not
        client._turns = copy.copy(client._turns)
        turns["device_prg_s"].append(raw_keystream(devices, size, clock))
        vector, delivered = cohort.vector(), cohort.deliveries[me]
        mask = partial(client.masked_input, cohort.shares, delivered, vector, in_place=True)
        turns["device_s"].append(timed(mask, clock))
    included = devices - dropped
    masks = included + dropped * included
    cohort.to_unmask(dropped)
    expected = cohort.vector() * cohort.context.dtype.type(included)
    for _ in range(repeat):
        server = copy.copy(cohort.server)
        server._total, server._unmasking = server._total.copy(), copy.copy(server._unmasking)
        server._unmasking._secrets, server._unmasking._tried = {}, 0
        turns["server_prg_s"].append(raw_keystream(masks, size, clock))
        turns["server_s"].append(timed(server.finish, clock))
        turns["plain_s"].append(plain_sum(included, dim, clock))
        if not np.array_equal(server.finish().total, expected):
            raise EchelonError("the unmasked sum is wrong: the figures of secure aggregation mean nothing")
    return {
        "dim": dim,
        "devices": devices,
        "dropped": dropped,
        "device_masks": devices,
        "server_masks": masks,
        "repeat": repeat,
        **{name: statistics.median(seconds) for name, seconds in turns.items()},
        "device_ratio": statistics.median(
            work / control for control, work in zip(turns["device_prg_s"], turns["device_s"], strict=True)
        ),
        "server_ratio": statistics.median(
            work / control for control, work in zip(turns["server_prg_s"], turns["server_s"], strict=True)
        ),
    }
