"""A server, or some devices, that lie: an honest device gives nothing away, and an honest server is not misled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from echelon.messages.handshake import (
    Consistency,
    Deliver,
    Included,
    KeyList,
    RevealedShare,
    Sealed,
    SealedShare,
    SharesList,
    SignatureEntry,
    Signatures,
    Unmask,
    Upload,
)
from echelon.messages.wire import DeviceId, Reason
from echelon.secagg.client import Client
from echelon.secagg.context import consistency_statement, masks_bound
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Abort, Aborted, InputRefused, WindowFailed
from echelon.secagg.graph import Ring
from echelon.secagg.keys import statement
from tests.secagg.federation import (
    LENGTH,
    Window,
    context_for,
    digest_of,
    names,
    plain_sum,
    roster_of,
    signer_of,
    vector_of,
)

D0, D1, D2, D3, D4, D5 = names(6)


def aborts(client: Client, reason: Abort, call: Callable[[], object]) -> None:
    """The call ends the window for this client, and so does every call from then on."""
    with pytest.raises(Aborted) as raised:
        call()
    assert raised.value.reason is reason
    assert client.aborted is reason
    with pytest.raises(Aborted) as again:
        client.advertise()
    assert again.value is raised.value


@pytest.fixture
def window() -> Window:
    return Window(context_for(names(6), colluding=1))  # t = 4, floor 3


def signatures_of(window: Window, included: Included, signers: list[DeviceId]) -> Signatures:
    """What honest signatures of these devices over `included` would look like."""
    keys, shares = window.decisions[0], window.decisions[1]
    assert isinstance(keys, KeyList)
    assert isinstance(shares, SharesList)
    signed = consistency_statement(window.context.bound(keys), shares, included)
    entries = tuple(SignatureEntry(device=d, signature=signer_of(d).sign(signed)) for d in sorted(signers))
    return Signatures(window=window.context.window, entries=entries)


# ---- the key list --------------------------------------------------------------------------------


def test_a_device_does_not_share_under_a_forged_or_doctored_key_list(window: Window) -> None:
    keys = window.advertise()
    entries = keys.entries

    def shown(entries_: tuple[object, ...], reason: Abort) -> None:
        client = Client(window.context, D0, signer_of(D0), window.roster, Entropy.seeded(b"window/d000"))
        client.advertise()
        lied = keys.model_copy(update={"entries": entries_})
        aborts(client, reason, lambda: client.share_keys(lied))

    swapped = entries[1].model_copy(update={"cipher_public": entries[2].mask_public})
    shown((entries[0], swapped, *entries[2:]), Abort.KEYS)
    fresh = entries[1].model_copy(update={"mask_public": b"\x09" + bytes(31)})
    shown((entries[0], fresh, *entries[2:]), Abort.KEYS)
    uncommitted = entries[1].model_copy(update={"seed_commitment": bytes(32)})
    shown((entries[0], uncommitted, *entries[2:]), Abort.KEYS)
    shown(entries[1:], Abort.MEMBERS)
    shown((entries[0], entries[0], *entries[1:]), Abort.MEMBERS)
    shown((*entries, entries[5].model_copy(update={"device": "stranger"})), Abort.MEMBERS)
    shown(entries[:3], Abort.THRESHOLD)
    other = Window(window.context, seed=b"other").advertise().entries
    shown((other[0], *entries[1:]), Abort.KEYS)


def test_a_key_of_low_order_ends_the_window(window: Window) -> None:
    advert = _advert_of(window, D1, mask_public=bytes(32))
    with pytest.raises(InputRefused, match="low order"):
        window.server.on_advertise(D1, advert)
    keys = window.advertise()
    client = window.clients[D0]
    low = _advert_of(window, D1, mask_public=bytes(32))
    entry = keys.entries[1].model_copy(
        update={
            "cipher_public": low.cipher_public,
            "mask_public": low.mask_public,
            "signature": low.signature,
        }
    )
    lied = keys.model_copy(update={"entries": (keys.entries[0], entry, *keys.entries[2:])})
    aborts(client, Abort.KEYS, lambda: client.share_keys(lied))


def _advert_of(window: Window, device: DeviceId, **changes: bytes):
    """An advertisement of `device` with other content, signed by itself."""
    advert = window.clients[device].advertise().model_copy(update=changes)
    signed = statement(
        "advertise",
        window.context.digest,
        device,
        advert.cipher_public,
        advert.mask_public,
        advert.seed_commitment,
        advert.evaluated,
        advert.front,
        advert.back,
    )
    return advert.model_copy(update={"signature": signer_of(device).sign(signed)})


def test_two_devices_with_one_key_are_refused(window: Window) -> None:
    window.server.on_advertise(D0, window.clients[D0].advertise())
    copied = _advert_of(window, D1, mask_public=window.clients[D0].advertise().mask_public)
    with pytest.raises(InputRefused, match="in use already"):
        window.server.on_advertise(D1, copied)
    keys = window.advertise()
    twin = keys.entries[1].model_copy(
        update={"mask_public": copied.mask_public, "signature": copied.signature}
    )
    lied = keys.model_copy(update={"entries": (keys.entries[0], twin, *keys.entries[2:])})
    aborts(window.clients[D2], Abort.KEYS, lambda: window.clients[D2].share_keys(lied))


def test_two_rosters_shown_to_two_halves_give_no_sum() -> None:
    """A key list with d005 for three devices and one without for the rest: nobody's shares open on the other side."""
    window = Window(context_for(names(6), t=4))
    with_all = window.advertise()
    without = with_all.model_copy(update={"entries": with_all.entries[:5]})
    sealed = {}
    for device in window.devices[:5]:
        sealed[device] = window.clients[device].share_keys(with_all if device < D3 else without)
    # The server hands everything over as if the two halves had seen one list.
    shares = SharesList(window=3, devices=tuple(window.devices[:5]))
    uploads = {}
    for device in window.devices[:5]:
        entries = tuple(
            SealedShare(
                device=sender,
                ciphertext=next(e.ciphertext for e in sealed[sender].entries if e.device == device),
            )
            for sender in window.devices[:5]
            if sender != device
        )
        delivered = _deliver(device, entries)
        uploads[device] = window.clients[device].masked_input(shares, delivered, vector_of(device))
    included = Included(
        window=3, entries=tuple(Upload(device=d, upload_sha256=digest_of(v)) for d, v in uploads.items())
    )
    signed = {d: window.clients[d].consistency(included).signature for d in uploads}
    for device in uploads:
        half = [d for d in uploads if (d < D3) == (device < D3)]
        signers, reason = (half, Abort.THRESHOLD) if device in (D0, D3) else (list(uploads), Abort.SIGNATURES)
        offered = Signatures(
            window=3, entries=tuple(SignatureEntry(device=d, signature=signed[d]) for d in signers)
        )
        client = window.clients[device]
        aborts(client, reason, lambda c=client, o=offered: c.unmask(o))


def test_a_second_key_list_is_a_fork(window: Window) -> None:
    keys = window.advertise()
    client = window.clients[D0]
    first = client.share_keys(keys)
    assert client.share_keys(keys) == first  # the same again gets the same answer
    other = keys.model_copy(update={"entries": keys.entries[:5]})
    aborts(client, Abort.FORK, lambda: client.share_keys(other))


def _deliver(to: str, entries: tuple[SealedShare, ...]) -> Deliver:
    return Deliver(window=3, to=to, entries=entries)


# ---- order and replay ----------------------------------------------------------------------------


def test_a_replayed_window_is_refused(window: Window) -> None:
    old = Window(context_for(names(6), colluding=1, window=2))
    old.run()
    keys, shares, included, signatures = old.decisions
    client = window.clients[D0]
    client.advertise()
    aborts(client, Abort.WINDOW, lambda: client.share_keys(keys))
    with pytest.raises(InputRefused) as refused:
        window.server.on_advertise(D1, old.clients[D1].advertise())
    assert refused.value.reason is Reason.OUT_OF_ORDER
    relabelled = old.clients[D1].advertise().model_copy(update={"window": 3})
    with pytest.raises(InputRefused) as refused:
        window.server.on_advertise(D1, relabelled)
    assert refused.value.reason is Reason.BAD_SIGNATURE
    current = window.advertise(drop=[D0])
    for at, other in enumerate((shares, included, signatures)):
        client = window.clients[names(6)[at + 1]]
        calls = {
            0: lambda c=client, o=other: c.masked_input(o, old.deliveries[c.me], vector_of(c.me)),
            1: lambda c=client, o=other: c.consistency(o),
            2: lambda c=client, o=other: c.unmask(o),
        }
        client.share_keys(current)
        aborts(client, Abort.WINDOW, calls[at])


def test_rounds_out_of_order_end_the_window(window: Window) -> None:
    other = Window(window.context)
    other.run()
    keys, shares, included, signatures = other.decisions
    c = window.clients
    aborts(c[D0], Abort.ORDER, lambda: c[D0].share_keys(keys))
    c[D1].advertise()
    aborts(c[D1], Abort.ORDER, lambda: c[D1].masked_input(shares, other.deliveries[D1], vector_of(D1)))
    aborts(c[D2], Abort.ORDER, lambda: c[D2].consistency(included))
    aborts(c[D3], Abort.ORDER, lambda: c[D3].unmask(signatures))
    aborts(c[D4], Abort.ORDER, lambda: c[D4].left_out(Included(window=3, entries=included.entries[:4])))


def test_a_second_vector_is_never_masked(window: Window) -> None:
    shares = window.share(window.advertise())
    window.mask(shares, D0)
    client = window.clients[D0]
    other = vector_of("other")
    aborts(client, Abort.ORDER, lambda: client.masked_input(shares, window.deliveries[D0], other))


# ---- round 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Abort.DELIVERY, lambda s, d, v: (s, d.model_copy(update={"to": "d001"}), v)),
        (Abort.DELIVERY, lambda s, d, v: (s, d.model_copy(update={"entries": d.entries[1:]}), v)),
        (Abort.DELIVERY, lambda s, d, v: (s.model_copy(update={"devices": s.devices[:5]}), d, v)),
        (Abort.MEMBERS, lambda s, d, v: (s.model_copy(update={"devices": (*s.devices, "stranger")}), d, v)),
        (Abort.MEMBERS, lambda s, d, v: (s.model_copy(update={"devices": s.devices[1:]}), d, v)),
        (Abort.THRESHOLD, lambda s, d, v: (s.model_copy(update={"devices": s.devices[:3]}), d, v)),
        (Abort.WINDOW, lambda s, d, v: (s, d.model_copy(update={"window": 2}), v)),
        (Abort.LENGTH, lambda s, d, v: (s, d, v[:-1])),
        (Abort.LENGTH, lambda s, d, v: (s, d, v.astype(np.int32))),
        (Abort.LENGTH, lambda s, d, v: (s, d, np.repeat(v, 2)[::2])),
    ],
)
def test_what_does_not_fit_is_not_masked(window: Window, reason: Abort, change: Callable[..., tuple]) -> None:
    shares = window.share(window.advertise())
    client = window.clients[D0]
    args = change(shares, window.deliveries[D0], vector_of(D0))
    aborts(client, reason, lambda: client.masked_input(*args))


def test_the_floor_is_undercut_after_round_2() -> None:
    """The server claims that uploads never came until too few to hide among are left; no device signs."""
    window = Window(context_for(names(6), k_min=5, t=4))
    shares = window.share(window.advertise())
    for device in window.devices:
        window.mask(shares, device)
    included = window.server.close_masked()
    fewer = included.model_copy(update={"entries": included.entries[:4]})
    for device in window.devices[:4]:
        client = window.clients[device]
        aborts(client, Abort.FLOOR, lambda c=client: c.consistency(fewer))


def test_a_refusal_below_the_floor_of_heads_says_how_many_there_are() -> None:
    """The floor of weight would refuse them, too; but in words that lead nobody to the cause."""
    context = context_for(names(6), k_min=5, t=4)
    with pytest.raises(Aborted, match="has 4 devices, the floor is 5"):
        context.check_floor(names(6)[:4], "U3")


def test_the_weight_floor_is_undercut_after_round_2() -> None:
    window = Window(context_for(names(6), k_min=3, weights={"d000": 2}, t=4))
    shares = window.share(window.advertise())
    for device in window.devices:
        window.mask(shares, device)
    included = window.server.close_masked()
    fewer = included.model_copy(update={"entries": included.entries[:4]})  # 2 + 1 + 1 + 1 < 3 · 2
    client = window.clients[D1]
    aborts(client, Abort.FLOOR, lambda: client.consistency(fewer))


# ---- round 3 -------------------------------------------------------------------------------------


def upto_included(window: Window) -> Included:
    return window.upload(window.share(window.advertise()))


def test_an_included_set_that_does_not_fit_is_not_signed(window: Window) -> None:
    included = upto_included(window)
    first = included.entries[0].model_copy(update={"upload_sha256": bytes(32)})
    stranger = Upload(device="stranger", upload_sha256=bytes(32))

    def lied(client: Client, reason: Abort, *entries: Upload) -> None:
        aborts(client, reason, lambda: client.consistency(included.model_copy(update={"entries": entries})))

    lied(window.clients[D0], Abort.UPLOAD, first, *included.entries[1:])
    lied(window.clients[D1], Abort.MEMBERS, *included.entries, stranger)
    lied(window.clients[D2], Abort.MEMBERS, *included.entries[:2], *included.entries[3:])
    lied(window.clients[D3], Abort.THRESHOLD, *included.entries[3:])


def test_false_dropouts_claimed_towards_some_of_the_devices(window: Window) -> None:
    """Half are told that d005 dropped out, half that it is included: neither set gets t signatures."""
    included = upto_included(window)
    without = included.model_copy(update={"entries": included.entries[:5]})
    told = {d: included if d in (D0, D1, D5) else without for d in window.devices}
    signed = {d: window.clients[d].consistency(told[d]).signature for d in window.devices}
    everything = Signatures(
        window=3, entries=tuple(SignatureEntry(device=d, signature=s) for d, s in signed.items())
    )
    for device in (D0, D2):
        client = window.clients[device]
        aborts(client, Abort.SIGNATURES, lambda c=client: c.unmask(everything))
    for device, alike in ((D1, (D0, D1, D5)), (D3, (D2, D3, D4))):
        client = window.clients[device]
        few = Signatures(
            window=3, entries=tuple(SignatureEntry(device=d, signature=signed[d]) for d in alike)
        )
        aborts(client, Abort.THRESHOLD, lambda c=client, f=few: c.unmask(f))


def test_a_second_included_set_is_not_signed(window: Window) -> None:
    included = upto_included(window)
    client = window.clients[D0]
    signed = client.consistency(included)
    assert client.consistency(included) == signed
    without = included.model_copy(update={"entries": included.entries[:5]})
    aborts(client, Abort.FORK, lambda: client.consistency(without))


def test_a_signature_over_another_u2_does_not_count(window: Window) -> None:
    """What was signed binds U2 too, so devices that were shown different shares lists do not add up."""
    included = upto_included(window)
    keys, shares = window.decisions[:2]
    other = SharesList(window=3, devices=shares.devices[:5])
    forged = consistency_statement(window.context.bound(keys), other, included)
    entries = tuple(SignatureEntry(device=d, signature=signer_of(d).sign(forged)) for d in names(6))
    client = window.clients[D0]
    client.consistency(included)
    aborts(client, Abort.SIGNATURES, lambda: client.unmask(Signatures(window=3, entries=entries)))


# ---- round 4 -------------------------------------------------------------------------------------


def test_never_both_shares_of_one_device(window: Window) -> None:
    shares = window.share(window.advertise())
    included = window.upload(shares, drop=[D5])
    signatures = window.sign(included)
    for device in names(5):
        answer = window.clients[device].unmask(signatures)
        assert [entry.device for entry in answer.seeds] == names(5)
        assert [entry.device for entry in answer.keys] == [D5]


def test_both_shares_of_one_device_asked_for_one_after_the_other(window: Window) -> None:
    """With d005 in U3 its seed is revealed; a later U3 without it, signed or not, gets nothing."""
    included = upto_included(window)
    signatures = window.sign(included)
    client = window.clients[D0]
    answer = client.unmask(signatures)
    assert client.unmask(signatures) == answer
    assert D5 in {entry.device for entry in answer.seeds}
    assert not answer.keys
    without = included.model_copy(update={"entries": included.entries[:5]})
    forged = signatures_of(window, without, names(5))
    for other, reason in ((D0, Abort.FORK), (D1, Abort.SIGNATURES)):
        asked = window.clients[other]
        aborts(asked, reason, lambda c=asked: c.unmask(forged))
    asked = window.clients[D2]
    aborts(asked, Abort.FORK, lambda: asked.consistency(without))
    aborts_after = window.clients[D3]
    fewer = signatures.model_copy(update={"entries": signatures.entries[:4]})
    answered = aborts_after.unmask(fewer)
    assert answered.seeds
    aborts(aborts_after, Abort.FORK, lambda: aborts_after.unmask(signatures))


def test_t_minus_1_signatures_and_exactly_t(window: Window) -> None:
    included = upto_included(window)
    signatures = window.sign(included)
    assert window.context.threshold == 4
    few = signatures.model_copy(update={"entries": signatures.entries[:3]})
    aborts(window.clients[D0], Abort.THRESHOLD, lambda: window.clients[D0].unmask(few))
    enough = signatures.model_copy(update={"entries": signatures.entries[:4]})
    assert len(window.clients[D1].unmask(enough).seeds) == 6


def test_signatures_of_strangers_do_not_count(window: Window) -> None:
    shares = window.share(window.advertise())
    included = window.upload(shares, drop=[D5])
    window.sign(included)
    client = window.clients[D0]
    padded = signatures_of(window, included, names(6))  # d005 is not in U3
    aborts(client, Abort.SIGNATURES, lambda: client.unmask(padded))


def test_left_out_devices_reveal_nothing_and_know_when_they_may_offer_again(window: Window) -> None:
    included = upto_included(window)
    without = included.model_copy(update={"entries": included.entries[:5]})
    client = window.clients[D5]
    assert not client.signed_without_me(signatures_of(window, without, names(5)))
    client.left_out(without)
    client.left_out(without)
    assert client.signed_without_me(signatures_of(window, without, names(4)))
    assert not client.signed_without_me(signatures_of(window, without, names(3)))
    # d005's own signature, a signature over another set, and another window do not count
    assert not client.signed_without_me(signatures_of(window, without, [*names(3), D5]))
    assert not client.signed_without_me(signatures_of(window, included, names(5)))
    late = signatures_of(window, without, names(5)).model_copy(update={"window": 4})
    assert not client.signed_without_me(late)
    aborts(client, Abort.SIGNATURES, lambda: client.unmask(signatures_of(window, without, names(5))))


def test_an_included_device_is_not_left_out(window: Window) -> None:
    included = upto_included(window)
    client = window.clients[D5]
    everybody = signatures_of(window, included, names(6))
    assert not client.signed_without_me(everybody)
    client.consistency(included)
    assert not client.signed_without_me(everybody)


def test_left_out_by_a_set_that_is_none(window: Window) -> None:
    included = upto_included(window)
    c = window.clients
    aborts(c[D5], Abort.MEMBERS, lambda: c[D5].left_out(included))
    stranger = Included(
        window=3, entries=(*included.entries[:4], Upload(device="x", upload_sha256=bytes(32)))
    )
    aborts(c[D4], Abort.MEMBERS, lambda: c[D4].left_out(stranger))
    without = included.model_copy(update={"entries": included.entries[:3]})
    c[D3].left_out(without)
    aborts(
        c[D3],
        Abort.FORK,
        lambda: c[D3].left_out(included.model_copy(update={"entries": included.entries[:2]})),
    )


def test_a_left_out_device_does_not_sign_a_second_set(window: Window) -> None:
    included = upto_included(window)
    client = window.clients[D5]
    client.left_out(included.model_copy(update={"entries": included.entries[:5]}))
    aborts(client, Abort.FORK, lambda: client.consistency(included))


# ---- rings -----------------------------------------------------------------------------------------


def test_a_set_with_a_gap_is_refused_on_a_ring_though_it_is_large_enough() -> None:
    context = context_for(names(40), colluding=1, degree=16)
    assert context.ring is not None
    order = context.ring.order
    context.check_ring(frozenset(order), "the cohort")
    two_left = [*order[3:5], *order[11:]]  # of the eight places from the third on
    context.check_ring(frozenset(two_left) | set(order[:3]), "the included set")
    with pytest.raises(Aborted, match="has 1 devices on an arc of 8 places") as refused:
        context.check_ring(frozenset([*order[:4], *order[11:]]), "the included set")
    assert refused.value.reason is Abort.THRESHOLD
    context_for(names(6)).check_ring(frozenset(names(3)), "any set of a complete graph")


def test_masks_are_bound_to_the_shares_list_and_the_key_list() -> None:
    lists = [SharesList(window=3, devices=tuple(names(n))) for n in (5, 6)]
    bounds = {masks_bound(bound, shares) for bound in (b"b" * 32, b"c" * 32) for shares in lists}
    assert len(bounds) == 4


# ---- contexts that no device accepts -------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        (Abort.THRESHOLD, {"threshold": 3}),
        (Abort.THRESHOLD, {"threshold": 7}),
        (Abort.THRESHOLD, {"colluding": 2}),
        (Abort.FLOOR, {"k_min": 6}),
        (Abort.MEMBERS, {"weight_max": 0}),
        (Abort.MEMBERS, {"ring": Ring.of(names(7), 4, b"")}),
        (Abort.THRESHOLD, {"ring": Ring.of(names(6), 4, b"")}),
    ],
)
def test_a_context_below_the_terms_is_refused(reason: Abort, change: dict[str, object]) -> None:
    context = context_for(names(6), colluding=1)
    with pytest.raises(Aborted) as refused:
        dataclasses.replace(context, **change)
    assert refused.value.reason is reason


def test_a_context_needs_distinct_members() -> None:
    context = context_for(names(6))
    for members in (context.members[::-1], (*context.members, context.members[5])):
        with pytest.raises(Aborted) as refused:
            dataclasses.replace(context, members=members)
        assert refused.value.reason is Abort.MEMBERS


def test_every_field_of_the_context_is_bound() -> None:
    context = context_for(names(6), k_min=2)
    context = dataclasses.replace(
        context, rank_blocks=2, members=tuple(dataclasses.replace(one, reach=1) for one in context.members)
    )
    others = {
        "run": b"s" * 16, "window": 4, "version": 12, "bases_root": b"c" * 32, "terms_sha256": b"n" * 32,
        "threshold": 5, "k_min": 3, "colluding": 1, "weight_max": 9, "clip_micro": 2, "scale_bits": 3, "length": 5,
        "members": (dataclasses.replace(context.members[0], n=2), *context.members[1:]),
        "ring": Ring.of(names(6), 4, b"a"), "offers_sha256": b"o" * 32, "ring_bits": 16,
        "rank_blocks": 3,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(context)}
    digests = {context.digest}
    for name, value in others.items():
        digests.add(dataclasses.replace(context, **{name: value}).digest)
    digests.add(dataclasses.replace(context, ring=Ring.of(names(6), 4, b"b")).digest)
    higher = dataclasses.replace(context.members[0], reach=2)
    digests.add(dataclasses.replace(context, members=(higher, *context.members[1:])).digest)
    assert len(digests) == len(others) + 3


@pytest.mark.parametrize(("blocks", "reach"), [(0, 1), (2, 0), (2, 3)])
def test_a_device_trains_some_of_the_rank_blocks_that_there_are(blocks: int, reach: int) -> None:
    context = context_for(names(6))
    members = tuple(dataclasses.replace(one, reach=reach) for one in context.members)
    with pytest.raises(Aborted, match=f"d000 trains {reach} of {blocks} rank blocks"):
        dataclasses.replace(context, rank_blocks=blocks, members=members)


def test_a_client_is_of_the_cohort_and_of_the_roster(window: Window) -> None:
    outsider = DeviceId("d009")
    with pytest.raises(Aborted, match="not in the cohort"):
        Client(window.context, outsider, signer_of(outsider), window.roster, Entropy.seeded(b""))
    with pytest.raises(Aborted, match="another key"):
        Client(window.context, D0, signer_of(D1), window.roster, Entropy.seeded(b""))
    with pytest.raises(Aborted, match="not on the roster"):
        Client(window.context, D0, signer_of(D0), roster_of(names(5)), Entropy.seeded(b""))


# ---- devices that lie to an honest server --------------------------------------------------------


def refused(reason: Reason, call: Callable[[], None]) -> None:
    with pytest.raises(InputRefused) as raised:
        call()
    assert raised.value.reason is reason


def test_an_id_twice_counts_once_and_the_first_message_wins(window: Window) -> None:
    server, clients = window.server, window.clients
    advert = clients[D0].advertise()
    server.on_advertise(D0, advert)
    server.on_advertise(D0, advert)
    second = Client(window.context, D0, signer_of(D0), window.roster, Entropy.seeded(b"again")).advertise()
    refused(Reason.FORK, lambda: server.on_advertise(D0, second))
    keys = window.advertise()
    assert keys.entries[0].mask_public == advert.mask_public
    sealed = clients[D0].share_keys(keys)
    server.on_sealed(D0, sealed)
    other = sealed.model_copy(
        update={"entries": tuple(e.model_copy(update={"ciphertext": bytes(82)}) for e in sealed.entries)}
    )
    refused(Reason.FORK, lambda: server.on_sealed(D0, other))
    shares = window.share(keys)
    window.mask(shares, D0)
    server.on_masked(D0, window.uploads[D0], digest_of(window.uploads[D0]))
    refused(Reason.FORK, lambda: server.on_masked(D0, vector_of("x"), digest_of(vector_of("x"))))
    included = window.upload(shares, drop=[D0])
    signatures = window.sign(included)
    refused(Reason.FORK, lambda: server.on_consistency(D0, Consistency(window=3, signature=bytes(64))))
    unmask = clients[D0].unmask(signatures)
    server.on_unmask(D0, unmask)
    refused(Reason.FORK, lambda: server.on_unmask(D0, unmask.model_copy(update={"seeds": unmask.seeds[1:]})))
    result = window.reveal(signatures, drop=[D0])
    assert np.array_equal(result.total, plain_sum(names(6)))


def test_inputs_of_strangers_and_of_the_wrong_round_are_refused(window: Window) -> None:
    server, clients = window.server, window.clients
    stranger = DeviceId("stranger")
    refused(Reason.WRONG_SENDER, lambda: server.on_advertise(stranger, clients[D0].advertise()))
    refused(Reason.BAD_SIGNATURE, lambda: server.on_advertise(D1, clients[D0].advertise()))
    refused(Reason.OUT_OF_ORDER, lambda: server.on_sealed(D0, Sealed(window=3, entries=())))
    refused(Reason.OUT_OF_ORDER, lambda: server.on_masked(D0, vector_of(D0), bytes(32)))
    refused(
        Reason.OUT_OF_ORDER, lambda: server.on_consistency(D0, Consistency(window=3, signature=bytes(64)))
    )
    refused(Reason.OUT_OF_ORDER, lambda: server.on_unmask(D0, Unmask(window=3, seeds=(), keys=())))
    keys = window.advertise(drop=[D5])
    refused(Reason.OUT_OF_ORDER, lambda: server.on_advertise(D5, clients[D5].advertise()))
    refused(Reason.OUT_OF_ORDER, lambda: server.on_sealed(D5, Sealed(window=3, entries=())))
    refused(Reason.PROTOCOL, lambda: server.on_sealed(D0, Sealed(window=3, entries=())))
    shares = window.share(keys, drop=[D4])
    refused(Reason.OUT_OF_ORDER, lambda: server.on_sealed(D4, clients[D4].share_keys(keys)))
    refused(Reason.OUT_OF_ORDER, lambda: server.on_masked(D4, vector_of(D4), bytes(32)))
    included = window.upload(shares)
    refused(Reason.FORK, lambda: server.on_masked(D0, vector_of(D0), bytes(32)))
    refused(Reason.OUT_OF_ORDER, lambda: server.on_masked(D4, vector_of(D4), bytes(32)))
    refused(
        Reason.BAD_SIGNATURE, lambda: server.on_consistency(D0, Consistency(window=3, signature=bytes(64)))
    )
    refused(
        Reason.OUT_OF_ORDER, lambda: server.on_consistency(D5, Consistency(window=3, signature=bytes(64)))
    )
    late = clients[D0].consistency(included)
    signatures = window.sign(included, drop=[])
    server.on_consistency(D0, late)
    assert np.array_equal(window.reveal(signatures).total, plain_sum(names(4)))


@pytest.mark.parametrize(
    "vector", [vector_of("x", LENGTH - 1), vector_of("x").astype(np.int64), vector_of("x")[None]]
)
def test_uploads_of_the_wrong_length_or_type_are_refused_and_leave_the_sum_alone(
    window: Window, vector: np.ndarray
) -> None:
    shares = window.share(window.advertise())
    refused(Reason.BAD_FIELD, lambda: window.server.on_masked(D0, vector, digest_of(vector)))
    included = window.upload(shares)
    result = window.reveal(window.sign(included))
    assert np.array_equal(result.total, plain_sum(names(6)))


def test_a_late_signature_is_no_fault(window: Window) -> None:
    included = upto_included(window)
    late = window.clients[D5].consistency(included)
    signatures = window.sign(included, drop=[D5])
    window.server.on_consistency(D5, late)
    result = window.reveal(signatures)
    assert D5 not in result.signatures
    assert D5 in result.included


def lying(
    window: Window, liars: list[DeviceId], *, drop: tuple[DeviceId, ...] = ()
) -> tuple[Included, Signatures]:
    """Up to the last round, in which honest answers of all but the liars are given; liars answer with noise."""
    included = window.upload(window.share(window.advertise()), drop=drop)
    signatures = window.sign(included)
    for entry in included.entries:
        device = DeviceId(entry.device)
        answer = window.clients[device].unmask(signatures)
        if device in liars:
            noise = {part: tuple(RevealedShare(device=e.device, share=b"\x00" + bytes([7]) * 32) for e in shares)
                     for part, shares in (("seeds", answer.seeds), ("keys", answer.keys))}  # fmt: skip
            answer = answer.model_copy(update=noise)
        window.server.on_unmask(device, answer)
    return included, signatures


@pytest.mark.parametrize("liars", [[D0], [D3], [D0, D1]])
def test_bad_shares_are_found_and_left_out(window: Window, liars: list[DeviceId]) -> None:
    lying(window, liars)
    result = window.server.finish()
    assert list(result.suspects) == liars
    assert np.array_equal(result.total, plain_sum(names(6)))


def test_bad_shares_of_a_dropped_devices_key_are_found(window: Window) -> None:
    lying(window, [D1], drop=(D5,))
    result = window.server.finish()
    assert result.suspects == (D1,)
    assert np.array_equal(result.total, plain_sum(names(5)))


def test_a_device_that_lies_about_a_dropped_devices_key_alone_is_found(window: Window) -> None:
    signatures = window.sign(window.upload(window.share(window.advertise()), drop=[D5]))
    for device in names(5):
        answer = window.clients[device].unmask(signatures)
        if device == D0:
            answer = answer.model_copy(update={"keys": (RevealedShare(device=D5, share=bytes(33)),)})
        window.server.on_unmask(device, answer)
    result = window.server.finish()
    assert result.suspects == (D0,)
    assert np.array_equal(result.total, plain_sum(names(5)))


def test_too_many_bad_shares_fail_the_window_and_name_suspects(window: Window) -> None:
    lying(window, [D0, D2, D4])
    assert window.server.complete  # everybody answered: waiting brings nothing
    with pytest.raises(WindowFailed) as failed:
        window.server.finish()
    assert failed.value.reason == "bad-shares"
    assert set(failed.value.suspects) >= {D0}


def test_with_exactly_t_answers_one_bad_share_waits_for_another_answer(window: Window) -> None:
    included = upto_included(window)
    signatures = window.sign(included)
    answers = {d: window.clients[d].unmask(signatures) for d in names(6)}
    bad = answers[D0].model_copy(
        update={"seeds": tuple(e.model_copy(update={"share": b"\xff" * 33}) for e in answers[D0].seeds)}
    )
    window.server.on_unmask(D0, bad)
    for device in (D1, D2, D3):
        assert not window.server.complete
        window.server.on_unmask(device, answers[device])
    assert not window.server.complete
    window.server.on_unmask(D4, answers[D4])
    assert window.server.complete
    assert np.array_equal(window.server.finish().total, plain_sum(names(6)))


def test_shares_that_nobody_may_ask_for_are_refused(window: Window) -> None:
    included = upto_included(window)
    signatures = window.sign(included)
    answer = window.clients[D0].unmask(signatures)
    both = answer.model_copy(update={"keys": answer.seeds[:1]})
    refused(Reason.PROTOCOL, lambda: window.server.on_unmask(D0, both))
    unknown = answer.model_copy(update={"seeds": (RevealedShare(device="x", share=bytes(33)),)})
    refused(Reason.PROTOCOL, lambda: window.server.on_unmask(D0, unknown))


def test_a_share_that_does_not_open_costs_only_that_share(window: Window) -> None:
    """d001 seals noise for d000: d000 goes on, and the others' shares of d001 are enough."""
    keys = window.advertise()
    sealed = window.clients[D1].share_keys(keys)
    spoilt = tuple(
        e.model_copy(update={"ciphertext": bytes(82)}) if e.device == D0 else e for e in sealed.entries
    )
    window.server.on_sealed(D1, sealed.model_copy(update={"entries": spoilt}))
    for device in names(6):
        if device != D1:
            window.server.on_sealed(device, window.clients[device].share_keys(keys))
    shares, window.deliveries = window.server.close_shares()
    window.decisions.append(shares)
    included = window.upload(shares)
    signatures = window.sign(included)
    assert D1 not in {entry.device for entry in window.clients[D0].unmask(signatures).seeds}
    assert np.array_equal(window.reveal(signatures).total, plain_sum(names(6)))
