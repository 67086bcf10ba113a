"""The ring of 16 bits: its sums never wrap around, and a window on it is a window like any other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ConfigError, ProtocolError
from echelon.laws.cohort import close_window, context_of, ring_vector, upload_length, vector_length
from echelon.laws.update_encoding import UpdateEncoder, codec_of
from echelon.laws.versions import largest_step
from echelon.messages.handshake import Advertise, Consistency, Sealed, Unmask
from echelon.messages.manifest import RunManifest, SecureTerms
from echelon.messages.wire import DeviceId
from echelon.secagg.client import Client
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Abort, Aborted, InputRefused
from echelon.secagg.prg import Masker, RingVector, keystream, ring_bytes
from echelon.secagg.rederivation import Input, rederive
from echelon.secagg.ring import (
    Codec,
    best_scale_bits,
    from_limb_sums,
    limb_cohort_max,
    pack_vector,
    to_limbs,
    unpack_sum,
)
from echelon.secagg.server import Server
from echelon.secagg.unmasking import SumResult
from tests.secagg.federation import names, roster_of, signer_of
from tests.secagg.test_cohort import DIM, SECURE, cohort, manifest, sums

M = TypeVar("M", Advertise, Sealed, Consistency, Unmask)
BOUND = 0.01
SHORT = SecureTerms(
    **SECURE.model_dump(exclude={"scale_bits", "coordinate_nano", "short_ring"}),
    scale_bits=best_scale_bits(BOUND, SECURE.cohort_max, 16), coordinate_nano=round(BOUND * 1e9), short_ring=True,
)  # fmt: skip
LARGEST = limb_cohort_max(16)


def short_manifest() -> RunManifest:
    return manifest().model_copy(update={"secure": SHORT})


def extremes(codec: Codec, devices: int) -> list[int]:
    """What the sum of so many devices decodes to, that all have the largest and the smallest value there is."""
    value = codec.encode(np.array([1e3, -1e3], np.float32), 1, 1, bytes(32))
    total = np.zeros(2, np.uint16)
    for _ in range(devices):
        total += value
    return codec.decode_sum(total).tolist()


@given(bound=st.floats(1e-6, 10.0), devices=st.integers(1, LARGEST))
def test_everybody_at_the_extreme_does_not_wrap_around(bound: float, devices: int) -> None:
    codec = Codec(1e4, best_scale_bits(bound, devices, 16), devices, 16, bound)
    assert extremes(codec, devices) == [devices * codec.largest, -devices * codec.largest]


def test_one_bit_more_of_scale_would_wrap_around_and_is_refused() -> None:
    """The attack: terms that the bound forbids turn the largest sum into one of the other sign."""
    bits = best_scale_bits(BOUND, 200, 16)
    finer = Codec(1.0, bits + 1, 100, 16, BOUND)  # allowed for half as many
    positive, negative = extremes(finer, 200)
    assert positive < 0 < negative, "the sum wrapped around"
    with pytest.raises(ConfigError, match=f"below 2\\*\\*15; lower scale_bits to {bits}"):
        Codec(1.0, bits + 1, 200, 16, BOUND)
    with pytest.raises(ConfigError, match=r"outside 1\.\.256, the limit of the ring of 16 bits"):
        Codec(1.0, 1, 257, 16, BOUND)
    with pytest.raises(ConfigError, match="no ring of 8 bits"):
        Codec(1.0, 1, 2, 8)


def test_a_coordinate_beyond_its_bound_is_cut_and_the_others_stay() -> None:
    codec = codec_of(SHORT)
    update = np.array([0.5, -0.5, 0.003], np.float32)
    np.testing.assert_allclose(codec.clip(update), [BOUND, -BOUND, 0.003], rtol=1e-6)
    inside = np.full(3, 0.9 * BOUND, np.float32)
    assert codec.clip(inside) is inside
    both = dataclasses.replace(codec, clip_norm=0.005)
    assert np.linalg.norm(both.clip(update)) == pytest.approx(0.005, rel=1e-6)
    encoded = UpdateEncoder(SHORT).encode(update, SHORT.weight_max, bytes(32))
    assert encoded.norm2 == pytest.approx(SHORT.weight_max * (2 * BOUND**2 + 0.003**2) * 2**32, rel=1e-5)


def test_rounding_is_unbiased_and_as_wide_as_the_formula_says() -> None:
    """The error of a mean over n equal devices has the standard deviation √(f(1 − f) / n) of a unit, with no bias."""
    codec, size, devices = codec_of(SHORT), 50_000, 8
    value, unit = 0.00337, 2.0**-SHORT.scale_bits
    vector = np.full(size, value, np.float32)
    total = np.zeros(size, np.int64)
    for device in range(devices):
        total += codec.decode_sum(codec.encode(vector, 1, 1, bytes([device] * 32)))
    error = total / devices * unit - np.float64(vector[0])
    fraction = float(vector[0]) / unit % 1.0
    wide = unit * np.sqrt(fraction * (1 - fraction) / devices)
    assert abs(error.mean()) < 6 * wide / np.sqrt(size)
    assert error.std() == pytest.approx(wide, rel=0.03)


values63 = st.integers(0, 2**63 - 1)


@given(rows=st.lists(st.tuples(values63, values63), min_size=1, max_size=30))
def test_integers_travel_as_limbs_of_8_bits_and_add_up_exactly(rows: list[tuple[int, int]]) -> None:
    total = np.zeros(3 + 16, np.uint16)
    for row in rows:
        total += pack_vector(np.array([1, 2, 65535], np.uint16), row)
    integers, aux = unpack_sum(total, 3)
    assert integers.dtype == np.int32
    assert integers.tolist() == [len(rows), 2 * len(rows), -len(rows)]
    assert aux == tuple(map(sum, zip(*rows, strict=True)))


def test_as_many_of_the_largest_integers_as_a_cohort_can_have_are_summed_exactly() -> None:
    total = to_limbs((2**63 - 1,), 16).astype(np.int64) * LARGEST
    assert total.max() < 1 << 16
    assert from_limb_sums(total.astype(np.uint16)) == (LARGEST * (2**63 - 1),)
    with pytest.raises(ProtocolError, match="7 limbs"):
        from_limb_sums(np.zeros(7, np.uint16))


def test_a_mask_of_16_bits_takes_half_the_keystream_of_the_same_key() -> None:
    key, words = b"k" * 16, keystream(b"k" * 16, 300_000)
    vector = np.zeros(600_000, np.uint16)
    Masker().add(vector, [(key, 1)])
    assert vector.tobytes() == words.tobytes()


class ShortWindow:
    """A window of four devices on the ring of 16 bits, driven to its sum."""

    def __init__(self, updates: dict[DeviceId, np.ndarray]) -> None:
        self.manifest, self.decided = short_manifest(), cohort()
        self.context = context_of(self.decided, self.manifest, DIM)
        self.roster = roster_of(names(4))
        self.server = Server(self.context, self.roster)
        self.updates = updates
        self.inputs: list[tuple[DeviceId, Input]] = []
        self.clients = {
            d: Client(self.context, d, signer_of(d), self.roster, Entropy.seeded(d.encode()))
            for d in names(4)
        }

    def run(self) -> SumResult:
        for device, client in self.clients.items():
            self._tell(self.server.on_advertise, device, client.advertise())
        keys = self.server.close_keys()
        for device, client in self.clients.items():
            self._tell(self.server.on_sealed, device, client.share_keys(keys))
        shares, deliveries = self.server.close_shares()
        members = {member.device: member for member in self.decided.members}
        encoder = UpdateEncoder(SHORT)
        for device, client in self.clients.items():
            member = members[device]
            encoded = encoder.encode(self.updates[device], member.weight, device.encode().ljust(32))
            aux = (member.n, member.weight, encoded.norm2, 77, 5, 6, 7, 8)
            masked = client.masked_input(shares, deliveries[device], pack_vector(encoded.ring, aux))
            payload = bytes(ring_bytes(masked))
            assert len(payload) == upload_length(DIM, self.manifest) == 2 * (DIM + 64)
            received = ring_vector(payload, 16)
            self.inputs.append((device, received))
            self.server.on_masked(device, received, digest_of(received))
        included = self.server.close_masked()
        for device, client in self.clients.items():
            self._tell(self.server.on_consistency, device, client.consistency(included))
        signatures = self.server.close_consistency()
        for device, client in self.clients.items():
            self._tell(self.server.on_unmask, device, client.unmask(signatures))
        self.decisions = [keys, shares, included, signatures]
        return self.server.finish()

    def _tell(self, take: Callable[[DeviceId, M], None], device: DeviceId, message: M) -> None:
        self.inputs.append((device, message))
        take(device, message)


def digest_of(vector: RingVector) -> bytes:
    return hashlib.sha256(vector.tobytes()).digest()


def test_a_window_gives_the_damped_mean_and_is_derived_again_from_its_inputs() -> None:
    updates = {
        d: np.random.default_rng(i).uniform(-BOUND, BOUND, DIM).astype(np.float32)
        for i, d in enumerate(names(4))
    }
    window = ShortWindow(updates)
    result = window.run()
    assert result.total.dtype == np.uint16
    assert result.total.size == window.context.length == vector_length(DIM, window.manifest)
    again = rederive(window.context, window.roster, window.decisions, window.inputs)
    assert np.array_equal(again.total, result.total)
    summary, mean = close_window(window.decided, result, window.manifest)
    members = window.decided.members
    n = sum(member.n for member in members)
    assert (summary.n, summary.weight) == (n, sum(member.weight for member in members))
    expected = sum(m.weight / 256 * updates[DeviceId(m.device)].astype(np.float64) for m in members) / n
    unit = SHORT.weight_max / (256 * n) * 2.0**-SHORT.scale_bits
    np.testing.assert_allclose(mean[:], expected, atol=4 * unit)
    assert np.abs(mean[:] - expected).max() > 0.01 * unit, "these are integers of few bits"


def test_what_a_device_sends_out_of_range_moves_the_window_no_further_than_clipped_updates_can() -> None:
    """Nobody can see one value in a sum: it is the sum that is bounded, by the ring and then by the clip."""
    n, weight = sums()
    aux = pack_vector(np.zeros(DIM, np.uint16), (n, weight, 0, 0, 0, 0, 0, 0))[DIM:]
    included = tuple(names(4))
    for worst in (1 << 15, (1 << 15) - 1):
        total = np.concatenate([np.full(DIM, worst, np.uint16), aux])
        result = SumResult(included, total, {d: d.encode().ljust(32) for d in included}, {}, (), ())
        loose = short_manifest()
        _, mean = close_window(cohort(), result, loose)
        reach = (1 << 15) * SHORT.weight_max / (256 * n) * 2.0**-SHORT.scale_bits
        assert np.abs(mean[:]).max() <= reach
        secure = SHORT.model_copy(update={"clip_micro": 1_000})
        strict = loose.model_copy(update={"secure": secure})
        _, mean = close_window(cohort(), result, strict)
        assert np.linalg.norm(mean[:]) <= largest_step(strict, DIM) * (1 + 1e-9)


def test_vectors_of_the_other_ring_are_refused() -> None:
    window = ShortWindow({d: np.zeros(DIM, np.float32) for d in names(4)})
    window.run()
    length = window.context.length
    device = names(4)[0]
    again = Server(window.context, window.roster)
    for decision in window.decisions:
        again.adopt(decision)
    wide = np.zeros(length, np.uint32)
    with pytest.raises(InputRefused, match="another upload"):
        again.on_masked(device, wide, digest_of(wide))
    with pytest.raises(ProtocolError, match="3 bytes is no vector of 16-bit"):
        ring_vector(bytes(3), 16)
    fresh = ShortWindow({})
    for one, client in fresh.clients.items():
        fresh.server.on_advertise(one, client.advertise())
    keys = fresh.server.close_keys()
    for one, client in fresh.clients.items():
        fresh.server.on_sealed(one, client.share_keys(keys))
    shares, deliveries = fresh.server.close_shares()
    with pytest.raises(Aborted) as left:
        fresh.clients[device].masked_input(shares, deliveries[device], wide)
    assert left.value.reason is Abort.LENGTH


def test_terms_without_a_short_ring_have_the_bytes_that_they_had() -> None:
    plain = manifest()
    assert b"short_ring" not in plain.canonical()
    assert b"coordinate_nano" not in plain.canonical()
    text = short_manifest().canonical()
    assert b'"coordinate_nano":10000000' in text
    assert b'"short_ring":true' in text
