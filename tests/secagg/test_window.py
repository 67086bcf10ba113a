"""A window ends with the exact sum of the included vectors, or without any."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import ProtocolError
from echelon.messages.handshake import Included, KeyList, Sealed, Unmask, Upload
from echelon.messages.wire import Message
from echelon.secagg.context import ring_threshold
from echelon.secagg.decisions import Round
from echelon.secagg.faults import InputRefused, WindowFailed
from echelon.secagg.rederivation import rederive
from echelon.secagg.server import Server
from tests.secagg.federation import (
    Window,
    context_for,
    digest_of,
    names,
    plain_sum,
    roster_of,
    signer_of,
    vector_of,
)

D1 = names(2)[1]


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_everybody_answers(n: int) -> None:
    window = Window(context_for(names(n)))
    result = window.run()
    assert result.included == tuple(window.devices)
    assert np.array_equal(result.total, plain_sum(window.devices))
    assert result.uploads == {device: digest_of(masked) for device, masked in window.uploads.items()}
    assert result.dropped == result.suspects == ()


@pytest.mark.parametrize("silent_in", range(5))
def test_one_device_leaves_in_each_round(silent_in: int) -> None:
    window = Window(context_for(names(6), colluding=1))
    drops: list[list[str]] = [[] for _ in range(5)]
    drops[silent_in] = ["d002"]
    result = window.run(*drops)
    kept = [d for d in window.devices if d != "d002" or silent_in > 2]
    assert list(result.included) == kept
    assert np.array_equal(result.total, plain_sum(kept))
    assert result.dropped == (("d002",) if silent_in == 2 else ())


@pytest.mark.parametrize("silent_in", range(5))
def test_exactly_t_suffice_and_fewer_do_not(silent_in: int) -> None:
    context = context_for(names(7), colluding=1)
    assert context.threshold == 5
    drops: list[list[str]] = [[] for _ in range(5)]
    drops[silent_in] = ["d000", "d006"]
    result = Window(context).run(*drops)
    assert np.array_equal(result.total, plain_sum(result.included))
    drops[silent_in].append("d003")
    with pytest.raises(WindowFailed) as failed:
        Window(context).run(*drops)
    assert failed.value.reason == "threshold"


def test_it_fails_for_the_floor_before_anybody_is_asked_to_unmask() -> None:
    context = context_for(names(6), k_min=5, t=4)
    window = Window(context)
    shares = window.share(window.advertise())
    with pytest.raises(WindowFailed) as failed:
        window.upload(shares, drop=["d000", "d001"])
    assert failed.value.reason == "floor"


def test_the_floor_on_weight() -> None:
    context = context_for(names(5), k_min=2, weights={"d000": 3}, t=3)
    window = Window(context)
    shares = window.share(window.advertise())
    with pytest.raises(WindowFailed) as failed:
        window.upload(shares, drop=["d003", "d004"])  # 3 + 1 + 1 < 2 · 3
    assert failed.value.reason == "floor"


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 9),
    colluding=st.integers(0, 1),
    seed=st.integers(0, 2**32),
    k=st.sampled_from([None, 2, 4]),
)
def test_random_dropouts_give_the_exact_sum_or_none(n: int, colluding: int, seed: int, k: int | None) -> None:
    degree = None if k is None or k > n - 2 or ring_threshold(k, colluding) > k + 1 else k
    context = context_for(names(n), colluding=colluding, k_min=2, degree=degree)
    dice = random.Random(seed)
    drops = [[d for d in names(n) if dice.random() < 0.08] for _ in range(5)]
    window = Window(context)
    try:
        result = window.run(*drops)
    except WindowFailed as failed:
        if failed.reason not in ("threshold", "floor") or not any(drops):
            raise
        return
    assert np.array_equal(result.total, plain_sum(result.included))
    replayed = rederive(
        context, window.roster, window.decisions, dice.sample(window.inputs, len(window.inputs))
    )
    assert np.array_equal(replayed.total, result.total)
    assert (replayed.included, replayed.uploads) == (result.included, result.uploads)
    assert replayed.signatures == result.signatures


def test_a_ring_survives_dropouts_that_are_not_too_near_one_another() -> None:
    context = context_for(names(24), degree=10)
    assert context.threshold == 8
    order = context.ring.order
    result = Window(context).run([order[0]], [order[6]], [order[12]], [order[18]], [order[3]])
    assert len(result.included) == 21
    assert np.array_equal(result.total, plain_sum(result.included))


@pytest.mark.parametrize("silent_in", [0, 1, 2])
def test_a_ring_that_is_cut_gives_no_sum(silent_in: int) -> None:
    """Whole arcs drop out: what is left on either side of them would be two sums."""
    context = context_for(names(24), degree=10)
    drops: list[list[str]] = [[] for _ in range(5)]
    drops[silent_in] = [*context.ring.order[3:8], *context.ring.order[15:20]]
    with pytest.raises(WindowFailed) as failed:
        Window(context).run(*drops)
    assert failed.value.reason == "threshold"


def test_on_a_ring_a_device_shares_and_reveals_among_its_neighbours_alone() -> None:
    window = Window(context_for(names(40), degree=8))
    result = window.run((), (), ["d003"])
    assert len(result.included) == 39
    for device, message in window.inputs:
        if isinstance(message, Sealed):
            assert {entry.device for entry in message.entries} == window.context.neighbours[device]
        if isinstance(message, Unmask):
            revealed = {entry.device for entry in (*message.seeds, *message.keys)}
            assert revealed <= window.context.holders(device)


@pytest.mark.parametrize("adopted", range(5))
def test_a_restarted_server_adopts_its_decisions_and_goes_on(adopted: int) -> None:
    first = Window(context_for(names(6)))
    expected = first.run((), ["d000"], ["d003"])
    server = Server(first.context, first.roster)
    for decision in first.decisions[:adopted]:
        server.adopt(decision)
    for device, message in first.inputs:  # everything is read again, and the rest follows as it did
        _feed(server, device, message)
    while server.round is not Round.UNMASK:
        _close(server)
        for device, message in first.inputs:
            _feed(server, device, message)
    assert server.complete
    again = server.finish()
    assert np.array_equal(again.total, expected.total)
    assert again.included == expected.included
    assert server.finish() is again


def _feed(server: Server, device, message) -> None:
    take = {"advertise": server.on_advertise, "sealed": server.on_sealed, "consistency": server.on_consistency,
            "unmask": server.on_unmask}  # fmt: skip
    try:
        if isinstance(message, Message):
            take[message.kind](device, message)
        else:
            server.on_masked(device, message, digest_of(message))
    except InputRefused as refused:
        if refused.reason != "out-of-order":
            raise


def _close(server: Server) -> None:
    [server.close_keys, server.close_shares, server.close_masked, server.close_consistency][server.round]()


def test_complete_says_when_waiting_brings_nothing() -> None:
    window = Window(context_for(names(4)))
    server = window.server
    for place, device in enumerate(window.devices):
        assert not server.complete
        server.on_advertise(device, window.clients[device].advertise())
        assert server.complete == (place == 3)
    keys = server.close_keys()
    for device in window.devices:
        assert not server.complete
        server.on_sealed(device, window.clients[device].share_keys(keys))
    assert server.complete
    shares, window.deliveries = server.close_shares()
    for device in window.devices:
        assert not server.complete
        window.mask(shares, device)
    assert server.complete
    included = server.close_masked()
    answered = [window.clients[device].consistency(included) for device in window.devices]
    for count, device in enumerate(window.devices):
        assert server.complete == (count >= 3)  # t of them are enough
        server.on_consistency(device, answered[count])
    signatures = server.close_consistency()
    for count, device in enumerate(window.devices):
        assert server.complete == (count >= 3)
        server.on_unmask(device, window.clients[device].unmask(signatures))
    server.finish()
    assert server.complete


def test_decisions_in_the_wrong_round_are_refused() -> None:
    window = Window(context_for(names(3)))
    with pytest.raises(ProtocolError, match="round keys"):
        window.server.close_masked()
    with pytest.raises(ProtocolError, match="round keys"):
        window.server.finish()
    window.advertise()
    with pytest.raises(ProtocolError, match="round shares"):
        window.server.close_keys()


def test_an_impossible_decision_is_not_adopted() -> None:
    first = Window(context_for(names(4)))
    first.run()
    keys, shares, included, signatures = first.decisions

    def adopting(*decisions) -> Server:
        server = Server(first.context, first.roster)
        for decision in decisions:
            server.adopt(decision)
        return server

    def refused(match: str, *decisions) -> None:
        with pytest.raises(ProtocolError, match=match):
            adopting(*decisions)

    other = Window(context_for(names(4)), seed=b"other")
    refused("round under way", shares)
    refused("of window 9", keys.model_copy(update={"window": 9}))
    refused("differs", keys, other.advertise())
    refused("did not sign", keys.model_copy(update={"entries": tuple(
        e.model_copy(update={"seed_commitment": bytes(32)}) for e in keys.entries)}))  # fmt: skip
    twice = keys.entries[0].model_copy(update={"device": "d001"})
    refused("did not sign", KeyList(window=3, entries=(twice,)))
    refused("are needed", KeyList(window=3, entries=keys.entries[:2]))
    refused("not in the key list", keys, shares.model_copy(update={"devices": (*shares.devices, "zz")}))
    refused("are needed", keys, shares.model_copy(update={"devices": shares.devices[:2]}))
    strange = Included(window=3, entries=(*included.entries, Upload(device="zz", upload_sha256=bytes(32))))
    refused("not in the shares list", keys, shares, strange)
    refused("did not sign", keys, shares, included, signatures.model_copy(update={"entries": tuple(
        e.model_copy(update={"signature": bytes(64)}) for e in signatures.entries)}))  # fmt: skip
    refused("signed the included", keys, shares, included,
            signatures.model_copy(update={"entries": signatures.entries[:2]}))  # fmt: skip
    adopting(keys, keys, shares, included, included, signatures)  # the one in force again is nothing new
    live = adopting(keys, shares)
    live.on_masked(first.devices[0], first.uploads[first.devices[0]], b"x" * 32)
    with pytest.raises(ProtocolError, match="adopt it before"):
        live.adopt(included)


def test_a_single_masked_vector_says_nothing_and_the_sum_is_right() -> None:
    """Of a zero vector the server sees bytes that pass for uniform: mean, bits and histogram."""
    length = 1 << 15
    window = Window(context_for(names(4), length=length))
    shares = window.share(window.advertise())
    zeros = np.zeros(length, np.uint32)
    for device in window.devices:
        masked = window.clients[device].masked_input(shares, window.deliveries[device], zeros)
        counts = np.bincount(masked.view(np.uint8), minlength=256)
        expected = 4 * length / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert 150 < chi2 < 380  # 255 degrees of freedom: outside with probability < 1e-6
        assert abs(float(masked.mean()) / 2**32 - 0.5) < 6 / np.sqrt(12 * length)
        window.server.on_masked(device, masked, digest_of(masked))
        window.uploads[device] = masked
    included = window.server.close_masked()
    window.decisions.append(included)
    result = window.reveal(window.sign(included))
    assert not result.total.any()


def test_two_windows_of_one_device_use_different_masks() -> None:
    uploads = []
    for number in (3, 4):
        window = Window(context_for(names(3), window=number))
        window.run()
        uploads.append(window.uploads["d000"])
    difference = uploads[0] - uploads[1]
    assert len(set(difference.tolist())) == difference.size


def test_masks_cancel_only_in_the_whole_sum() -> None:
    window = Window(context_for(names(4)))
    window.run()
    for device, masked in window.uploads.items():
        assert not np.array_equal(masked, vector_of(device))
    partial = sum(window.uploads[d].astype(np.uint64) for d in window.devices[:3]).astype(np.uint32)
    assert not np.array_equal(partial, plain_sum(window.devices[:3]))


def test_the_whole_cohort_stands_on_the_roster() -> None:
    with pytest.raises(ProtocolError, match="enrol it first"):
        Server(context_for(names(4)), roster_of(names(3)))


def test_a_key_list_with_one_key_twice_is_not_adopted() -> None:
    """Each device signed its entry, but one copied the other's mask key."""
    window = Window(context_for(names(4)))
    keys = window.advertise()
    copied = keys.entries[1].model_copy(update={"mask_public": keys.entries[0].mask_public})
    signed = signer_of(D1).sign(window.context.advert_statement(copied))
    entries = (keys.entries[0], copied.model_copy(update={"signature": signed}), *keys.entries[2:])
    with pytest.raises(ProtocolError, match="stands twice"):
        Server(window.context, window.roster).adopt(keys.model_copy(update={"entries": entries}))
