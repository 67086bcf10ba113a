"""What devices seal for each other opens for nobody else, and masks of two devices cancel."""

from __future__ import annotations

import pytest

from echelon.messages.handshake import KeyEntry
from echelon.messages.wire import DeviceId
from echelon.secagg.device_secrets import DeviceSecrets
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import commit_seed
from echelon.secagg.shamir import Interpolation
from tests.secagg.federation import context_for, names

DEVICES = names(3)
CONTEXT = context_for(DEVICES)
BOUND = b"u1".ljust(32)


def entry_of(device: DeviceId, secrets: DeviceSecrets) -> KeyEntry:
    return KeyEntry(
        device=device,
        cipher_public=secrets.cipher_public,
        mask_public=secrets.mask_public,
        seed_commitment=secrets.seed_commitment,
        evaluated=False,
        front=0,
        back=0,
        signature=bytes(64),
    )


def everybody() -> dict[DeviceId, DeviceSecrets]:
    made = {d: DeviceSecrets(CONTEXT, d, Entropy.seeded(d.encode())) for d in DEVICES}
    for device, secrets in made.items():
        secrets.bind(BOUND)
        for other in DEVICES:
            if other != device:
                secrets.agree(entry_of(other, made[other]))
    return made


def test_shares_open_for_whom_they_are_sealed_and_give_the_seed() -> None:
    made = everybody()
    sender, one, other = DEVICES
    sealed = {entry.device: entry for entry in made[sender].deal(DEVICES)}
    assert sealed.keys() == {one, other}
    for device in (one, other):
        made[device].unseal(sealed[device].model_copy(update={"device": sender}))
    # The other's is not for this device: it is as if it had never come.
    made[one].unseal(sealed[other].model_copy(update={"device": other}))
    assert made[one].seed_shares([other]) == ()
    shares = [made[device].seed_shares([sender])[0].share for device in (sender, one, other)]
    points = tuple(CONTEXT.points[device] for device in DEVICES)
    seed = Interpolation(points[: CONTEXT.threshold]).secret(shares[: CONTEXT.threshold])
    assert seed is not None
    assert commit_seed(seed, CONTEXT.digest, sender) == made[sender].seed_commitment
    assert made[sender].key_shares([sender])[0].share != shares[0]


def test_the_masks_of_two_devices_have_one_key_and_opposite_signs() -> None:
    made = everybody()
    one, other, _ = DEVICES
    ((_, own), (key, sign)) = made[one].masks([other], BOUND)
    ((_, _), (same, opposite)) = made[other].masks([one], BOUND)
    assert own == 1
    assert (key, sign) == (same, -opposite)


def test_a_key_of_low_order_agrees_on_nothing() -> None:
    made = everybody()
    one, other, _ = DEVICES
    with pytest.raises(ValueError, match="key"):
        made[one].agree(entry_of(other, made[other]).model_copy(update={"mask_public": bytes(32)}))
