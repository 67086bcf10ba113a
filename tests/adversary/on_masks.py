"""Insiders in one window of secure aggregation, over the real clients and server with their keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Included,
    KeyList,
    RevealedShare,
    Sealed,
    SharesList,
    SignatureEntry,
    Signatures,
    Unmask,
    Upload,
)
from echelon.messages.wire import DeviceId, Message
from echelon.secagg.client import Client
from echelon.secagg.context import consistency_statement
from echelon.secagg.entropy import Entropy
from echelon.secagg.faults import Aborted, InputRefused, WindowFailed
from echelon.secagg.server import Server
from tests.adversary.case import Cases, Noticed, Played
from tests.secagg.federation import Window, context_for, digest_of, names, signer_of, vector_of
from tests.secagg.test_adversary import _advert_of

CASES = Cases("masks")
SIX = names(6)
D0, D1, D2, D3, D4, D5 = SIX


def six(**terms: Any) -> Window:
    """Six devices, of which one may work with the aggregator: t = 4, the floor is 3."""
    return Window(context_for(SIX, **{"colluding": 1, **terms}))


def asked(record: str, *calls: Callable[[], object]) -> Played:
    """The aggregator asks honest devices for something that they must not give: what it wants is any answer."""
    found, answered = [], False
    for call in calls:
        try:
            call()
        except Aborted as error:
            found.append(Noticed("device", error.reason.value, record))
        else:
            answered = True
    return Played(tuple(found), answered)


# ---- the aggregator alone: keys and shares ---------------------------------------------------------


def doctored(change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Callable[[], Played]:
    """Device d000 is shown another list of keys than was advertised."""

    def play() -> Played:
        window = six()
        keys = window.advertise()
        lied = keys.model_copy(update={"entries": change(keys.entries)})
        return asked("keylist", lambda: window.clients[D0].share_keys(lied))

    return play


KEYS: tuple[tuple[str, str, Callable[[tuple[Any, ...]], tuple[Any, ...]], str], ...] = (
    (
        "cohort lie",
        "puts a key of its own in a device's place",
        lambda e: (e[0], e[1].model_copy(update={"mask_public": b"\x09" + bytes(31)}), *e[2:]),
        "keys",
    ),
    (
        "cohort lie",
        "puts another device's key in a device's place",
        lambda e: (e[0], e[1].model_copy(update={"cipher_public": e[2].mask_public}), *e[2:]),
        "keys",
    ),
    (
        "cohort lie",
        "shows keys that devices advertised for nobody",
        lambda e: (Window(six().context, seed=b"other").advertise().entries[0], *e[1:]),
        "keys",
    ),
    (
        "evaluations below the floor",
        "says that a device adds an evaluation that adds none",
        lambda e: (e[0], e[1].model_copy(update={"evaluated": not e[1].evaluated}), *e[2:]),
        "keys",
    ),
    ("cohort lie", "leaves a device out of the list that it is shown", lambda e: e[1:], "members"),
    ("cohort lie", "lists a device twice", lambda e: (e[0], e[0], *e[1:]), "members"),
    (
        "cohort lie",
        "lists a device that is not in the cohort",
        lambda e: (*e, e[5].model_copy(update={"device": "stranger"})),
        "members",
    ),
    ("cohort lie", "lists fewer devices than the threshold", lambda e: e[:3], "threshold"),
)
for kind, does, change, reason in KEYS:
    CASES.add("aggregator", kind, does, doctored(change), by="device", finding=reason, record="keylist")


def second_keys() -> Played:
    window = six()
    keys = window.advertise()
    window.clients[D0].share_keys(keys)
    other = keys.model_copy(update={"entries": keys.entries[:5]})
    return asked("keylist", lambda: window.clients[D0].share_keys(other))


CASES.add(
    "aggregator",
    "included-set fork",
    "shows a second list of keys",
    second_keys,
    by="device",
    finding="fork",
    record="keylist",
)


def delivered(change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> Callable[[], Played]:
    def play() -> Played:
        window = six()
        shares = window.share(window.advertise())
        asks = change(shares, window.deliveries[D0], vector_of(D0))
        return asked("shares", lambda: window.clients[D0].masked_input(*asks))

    return play


for does, deliver, reason in (
    (
        "hands over the shares of another device",
        lambda s, d, v: (s, d.model_copy(update={"to": "d001"}), v),
        "delivery",
    ),
    (
        "keeps a share back",
        lambda s, d, v: (s, d.model_copy(update={"entries": d.entries[1:]}), v),
        "delivery",
    ),
    (
        "lists fewer devices than have shared",
        lambda s, d, v: (s.model_copy(update={"devices": s.devices[:5]}), d, v),
        "delivery",
    ),
    (
        "lists too few to reach the threshold",
        lambda s, d, v: (s.model_copy(update={"devices": s.devices[:3]}), d, v),
        "threshold",
    ),
):
    CASES.add(
        "aggregator", "cohort lie", does, delivered(deliver), by="device", finding=reason, record="shares"
    )


def replayed(place: int) -> Callable[[], Played]:
    """Decisions of an earlier window of the same devices."""

    def play() -> Played:
        window, old = six(), six(window=2)
        old.run()
        client = window.clients[D0]
        current = window.advertise()
        if place:
            client.share_keys(current)
        calls: tuple[Callable[[Any], object], ...] = (
            client.share_keys,
            lambda s: client.masked_input(s, old.deliveries[D0], vector_of(D0)),
            client.consistency,
            client.unmask,
        )
        return asked(old.decisions[place].kind, lambda: calls[place](old.decisions[place]))

    return play


DECISIONS: tuple[type[Message], ...] = (KeyList, SharesList, Included, Signatures)
for place, decision in enumerate(DECISIONS):
    CASES.add(
        "aggregator",
        "replay",
        f"shows the `{decision.kind}` of an earlier window",
        replayed(place),
        by="device",
        finding="window",
        record=decision.kind,
    )


def second_vector() -> Played:
    window = six()
    shares = window.share(window.advertise())
    window.mask(shares, D0)
    return asked(
        "shares", lambda: window.clients[D0].masked_input(shares, window.deliveries[D0], vector_of("other"))
    )


CASES.add(
    "aggregator",
    "replay",
    "asks for a second vector under the same masks",
    second_vector,
    by="device",
    finding="order",
    record="shares",
)


# ---- the aggregator alone: the included set --------------------------------------------------------


def upto_included(window: Window) -> Included:
    return window.upload(window.share(window.advertise()))


def included_of(change: Callable[[tuple[Any, ...]], tuple[Any, ...]], **terms: Any) -> Callable[[], Played]:
    def play() -> Played:
        window = six(**terms)
        included = upto_included(window)
        lied = included.model_copy(update={"entries": change(included.entries)})
        return asked("included", *(lambda c=window.clients[d]: c.consistency(lied) for d in (D0, D1)))

    return play


SETS: tuple[tuple[str, str, Callable[[tuple[Any, ...]], tuple[Any, ...]], str, dict[str, Any]], ...] = (
    (
        "included-set fork",
        "names another upload of its devices",
        lambda e: tuple(one.model_copy(update={"upload_sha256": bytes(32)}) for one in e),
        "upload",
        {},
    ),
    (
        "included-set fork",
        "includes somebody who is not in the cohort",
        lambda e: (*e, Upload(device="stranger", upload_sha256=bytes(32))),
        "members",
        {},
    ),
    ("included-set fork", "includes fewer than the threshold", lambda e: e[:3], "threshold", {}),
    (
        "included-set fork",
        "claims that uploads never came, until too few are left to hide among",
        lambda e: e[:4],
        "floor",
        {"k_min": 5, "colluding": 0, "t": 4},
    ),
    (
        "weights and caps",
        "claims that uploads never came, until one weighs too much",
        lambda e: e[:4],
        "floor",
        {"k_min": 3, "colluding": 0, "t": 4, "weights": {"d000": 2}},
    ),
)
for kind, does, change, reason, set_terms in SETS:
    CASES.add(
        "aggregator",
        kind,
        does,
        included_of(change, **set_terms),
        by="device",
        finding=reason,
        record="included",
    )


def second_set() -> Played:
    window = six()
    included = upto_included(window)
    client = window.clients[D0]
    client.consistency(included)
    return asked(
        "included", lambda: client.consistency(included.model_copy(update={"entries": included.entries[:5]}))
    )


CASES.add(
    "aggregator",
    "included-set fork",
    "shows one device two included sets",
    second_set,
    by="device",
    finding="fork",
    record="included",
)


def signed_by(
    window: Window, included: Included, signers: Collection[str], shares: SharesList | None = None
) -> Signatures:
    keys, found = window.decisions[0], window.decisions[1]
    assert isinstance(keys, KeyList)
    assert isinstance(found, SharesList)
    signed = consistency_statement(window.context.bound(keys), shares or found, included)
    entries = tuple(SignatureEntry(device=d, signature=signer_of(d).sign(signed)) for d in sorted(signers))
    return Signatures(window=window.context.window, entries=entries)


def unmasks(signatures: Callable[[Window, Included], Signatures]) -> Callable[[], Played]:
    """A device has signed the true included set and is shown these signatures."""

    def play() -> Played:
        window = six()
        included = upto_included(window)
        window.clients[D0].consistency(included)
        shown = signatures(window, included)
        return asked("signatures", lambda: window.clients[D0].unmask(shown))

    return play


def _less(included: Included) -> Included:
    return included.model_copy(update={"entries": included.entries[:5]})


SIGNED: tuple[tuple[str, Callable[[Window, Included], Signatures], str], ...] = (
    ("shows one signature less than the threshold", lambda w, i: signed_by(w, i, SIX[:3]), "threshold"),
    (
        "shows signatures of a set without one device",
        lambda w, i: signed_by(w, _less(i), SIX[:5]),
        "signatures",
    ),
    (
        "shows signatures over another list of shares",
        lambda w, i: signed_by(w, i, SIX, SharesList(window=3, devices=tuple(SIX[:5]))),
        "signatures",
    ),
    (
        "signs in the place of devices",
        lambda w, i: signed_by(w, i, SIX).model_copy(
            update={
                "entries": tuple(
                    SignatureEntry(device=d, signature=signer_of("aggregator").sign(b"x")) for d in SIX
                )
            }
        ),
        "signatures",
    ),
)
for does, shown, reason in SIGNED:
    CASES.add(
        "aggregator",
        "included-set fork",
        does,
        unmasks(shown),
        by="device",
        finding=reason,
        record="signatures",
    )


def both_shares() -> Played:
    """A seed was revealed; now the key of the same device is asked for."""
    window = six()
    included = upto_included(window)
    client = window.clients[D0]
    client.unmask(window.sign(included))
    forged = signed_by(window, _less(included), SIX[:5])
    return asked("signatures", lambda: client.unmask(forged))


CASES.add(
    "aggregator",
    "included-set fork",
    "asks for the second share of a device after the first",
    both_shares,
    by="device",
    finding="fork",
    record="signatures",
)


# ---- the aggregator and devices: two included sets -------------------------------------------------


def forked(insiders: Sequence[DeviceId], *, devices: int = 6, colluding: int = 1) -> Callable[[], Played]:
    """Half of the honest devices are told that the last one is in, half that it dropped out; insiders help in both.

    What is wanted is both sums: their difference is the last device's update.
    """

    def play() -> Played:
        everybody = names(devices)
        victim = everybody[-1]
        context = context_for(everybody, colluding=colluding)
        window = Window(context)
        keys = window.advertise()
        shares = window.share(keys)
        for device in everybody:
            window.mask(shares, device)
        full = window.server.close_masked()
        window.decisions.append(full)
        less = full.model_copy(update={"entries": tuple(e for e in full.entries if e.device != victim)})
        honest = [d for d in everybody if d not in insiders and d != victim]
        half = (len(honest) - 1) // 2
        found: list[Noticed] = []
        sums = []
        for told, group in ((full, [victim, *honest[:half]]), (less, honest[half:])):
            for device in group:
                window.clients[device].consistency(told)
            signatures = signed_by(window, told, [*group, *insiders])
            server = Server(context, window.roster)
            gone = () if told is full else (victim,)
            for device, message in window.inputs:
                if isinstance(message, np.ndarray):
                    if device not in gone:
                        server.on_masked(device, message, digest_of(message))
                        if device == [d for d in everybody if d not in gone][-1]:
                            server.close_masked()
                elif isinstance(message, Advertise):
                    server.on_advertise(device, message)
                    if device == everybody[-1]:
                        server.close_keys()
                elif isinstance(message, Sealed):
                    server.on_sealed(device, message)
                    if device == everybody[-1]:
                        server.close_shares()
            answers: dict[DeviceId, Unmask] = {}
            for device in group:
                try:
                    answers[device] = window.clients[device].unmask(signatures)
                except Aborted as error:
                    found.append(Noticed("device", error.reason.value, "signatures"))
            for device in insiders:
                twin = Client(
                    context,
                    device,
                    signer_of(device),
                    window.roster,
                    Entropy.seeded(window.seed + b"/" + device.encode()),
                )
                twin.advertise()
                twin.share_keys(keys)
                twin.masked_input(shares, window.deliveries[device], vector_of(device, context.length))
                twin.consistency(told)
                try:
                    answers[device] = twin.unmask(signatures)
                except Aborted:
                    continue
            for entry in signatures.entries:
                server.on_consistency(DeviceId(entry.device), _consistency(context.window, entry))
            try:
                server.close_consistency()
                for device, answer in answers.items():
                    server.on_unmask(device, answer)
                sums.append(server.finish().total)
            except WindowFailed:
                continue
        read = len(sums) == 2 and np.array_equal(sums[0] - sums[1], vector_of(victim, context.length))
        return Played(tuple(found), read)

    return play


def _consistency(window: int, entry: SignatureEntry) -> Consistency:
    return Consistency(window=window, signature=entry.signature)


CASES.add(
    "device + aggregator",
    "included-set fork",
    "tell two halves two sets, and sign both",
    forked([D0]),
    by="device",
    finding="threshold",
    record="signatures",
)
CASES.add(
    "c devices + aggregator",
    "included-set fork",
    "tell two halves two sets, and sign both",
    forked(names(2), devices=8, colluding=2),
    by="device",
    finding="threshold",
    record="signatures",
)
CASES.add(
    "c devices + aggregator",
    "included-set fork",
    "tell two halves two sets, and sign both, with one device more than c",
    forked([D0, D1]),
    reason="the threshold is for c colluders: with more, two halves can reach it, and one update is read",
)


# ---- devices alone ---------------------------------------------------------------------------------


def subtracted(insiders: int, colluding: int = 2) -> Callable[[], Played]:
    """Insiders know the sum and their own updates: what is left is a sum over fewer devices."""

    def play() -> Played:
        context = context_for(names(3 + colluding), k_min=3, colluding=colluding)
        window = Window(context)
        total = window.run().total
        known = names(3 + colluding)[:insiders]
        rest = [d for d in names(3 + colluding) if d not in known]
        left = total.copy()
        for device in known:
            left -= vector_of(device, context.length)
        assert np.array_equal(left, sum((vector_of(d, context.length) for d in rest), np.zeros_like(total)))
        if len(rest) >= context.k_min:
            return Played((Noticed("the floor", f"{len(rest)} are left", "window 3"),), False)
        return Played((), True)

    return play


CASES.add(
    "device",
    "included-set fork",
    "subtracts its own update from the sum",
    subtracted(1),
    by="the floor",
    finding="4 are left",
    record="window 3",
)
CASES.add(
    "c devices",
    "included-set fork",
    "subtract their own updates from the sum",
    subtracted(2),
    by="the floor",
    finding="3 are left",
    record="window 3",
)
CASES.add(
    "device + c devices",
    "included-set fork",
    "c + 1 subtract their own updates from the sum",
    subtracted(3),
    reason="the floor of k_min is for c colluders: with each one more the sum left is over one device less",
)


def bad_shares(*liars: DeviceId) -> Callable[[], Played]:
    """In the last round liars answer with noise; what they want is another sum."""

    def play() -> Played:
        window = six()
        included = upto_included(window)
        signatures = window.sign(included)
        for device in SIX:
            answer = window.clients[device].unmask(signatures)
            if device in liars:
                noise = tuple(
                    RevealedShare(device=e.device, share=b"\x00" + bytes([7]) * 32) for e in answer.seeds
                )
                answer = answer.model_copy(update={"seeds": noise})
            window.server.on_unmask(device, answer)
        try:
            result = window.server.finish()
        except WindowFailed as error:
            return Played((Noticed("aggregator", error.reason, ", ".join(error.suspects)),), False)
        right = sum((vector_of(d, window.context.length) for d in SIX), np.zeros_like(result.total))
        found = tuple(Noticed("aggregator", "suspect", device) for device in result.suspects)
        return Played(found, not np.array_equal(result.total, right))

    return play


CASES.add(
    "device",
    "void window",
    "answers with a share that it did not get",
    bad_shares(D3),
    by="aggregator",
    finding="suspect",
    record="d003",
)
CASES.add(
    "c devices",
    "void window",
    "two answer with shares that they did not get",
    bad_shares(D0, D1),
    by="aggregator",
    finding="suspect",
    record="d001",
)
CASES.add(
    "device + c devices",
    "void window",
    "three answer with shares that they did not get",
    bad_shares(D0, D2, D4),
    by="aggregator",
    finding="bad-shares",
    record="d000",
)


def sends(call: Callable[[Window], object], record: str) -> Callable[[], Played]:
    """A device sends the aggregator something that it must not take."""

    def play() -> Played:
        window = six()
        try:
            call(window)
        except InputRefused as error:
            return Played((Noticed("aggregator", error.reason.value, record),), False)
        return Played((), True)

    return play


def _copied(window: Window) -> None:
    window.server.on_advertise(D0, window.clients[D0].advertise())
    window.server.on_advertise(
        D1, _advert_of(window, D1, mask_public=window.clients[D0].advertise().mask_public)
    )


def _low(window: Window) -> None:
    window.server.on_advertise(D1, _advert_of(window, D1, mask_public=bytes(32)))


def _for_another(window: Window) -> None:
    window.server.on_advertise(D1, window.clients[D0].advertise())


def _old(window: Window) -> None:
    window.server.on_advertise(D1, six(window=2).clients[D1].advertise())


def _unasked(window: Window) -> None:
    answer = window.clients[D0].unmask(window.sign(upto_included(window)))
    window.server.on_unmask(D0, answer.model_copy(update={"keys": answer.seeds[:1]}))


for kind, does, sent, reason, record in (
    ("replay", "advertises another device's key as its own", _copied, "protocol", "advertise"),
    ("unsigned or forged record", "advertises a key of low order", _low, "protocol", "advertise"),
    (
        "unsigned or forged record",
        "advertises in another device's name",
        _for_another,
        "bad-signature",
        "advertise",
    ),
    ("replay", "advertises for a window that is over", _old, "out-of-order", "advertise"),
    ("cohort lie", "reveals both shares of a device to the aggregator", _unasked, "protocol", "unmask"),
):
    CASES.add("device", kind, does, sends(sent, record), by="aggregator", finding=reason, record=record)
