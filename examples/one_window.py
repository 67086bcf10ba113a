"""One window from top to bottom, without a broker: what each party computes, and what it gets to see.

    python examples/one_window.py

Five devices of one boundary have an update each. The aggregator learns their sum and nothing else, although one
device falls silent halfway. The gate derives the sum again from the records. A delta crosses the boundary; the
controller makes a commit of it, and an auditor derives that commit again, bit for bit. Every function called here is
the one that runs in production; there the messages travel over topics, and each of them is signed.
"""

from __future__ import annotations

import hashlib
import sys

import numpy as np

from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger, window_mean
from echelon.messages.envelope import Signer
from echelon.messages.exchange import DeltaCodec, WindowSummary
from echelon.messages.manifest import OuterKind, OuterTerms, SecureTerms, Weighting
from echelon.messages.wire import DeviceId
from echelon.outer.base import WeightedDelta
from echelon.outer.registry import outer_optimiser
from echelon.secagg.client import Client
from echelon.secagg.context import Context, ContextMember, threshold
from echelon.secagg.decisions import Decision
from echelon.secagg.entropy import Entropy
from echelon.secagg.rederivation import Input, rederive
from echelon.secagg.ring import Codec, pack_vector, unpack_sum
from echelon.secagg.roster import Roster, RosterEntry, WindowLeaf, roster_root
from echelon.secagg.server import Server

DIM = 1000
"""Parameters of the adapter."""
DEVICES = [DeviceId(name) for name in ("ward-1", "ward-2", "ward-3", "ward-4", "ward-5")]
SILENT = DEVICES[4]
"""Falls silent after the key shares: its masks have to be taken out again."""


def main() -> int:
    """Run the window; 0 if gate and auditor come to the same bits."""
    # 0. What everybody has signed or pinned before: keys, floors, and the fixed-point scale of the sum.
    secure = SecureTerms(
        k_min=3, colluding=0, cohort_max=5, clip_micro=1_000_000, scale_bits=24, bucket_tokens=1024, n_max=8,
        staleness=(1,),
    )  # fmt: skip
    signers = {device: Signer(hashlib.sha256(device.encode()).digest()) for device in DEVICES}
    roster = Roster.enrol(
        "hospital",
        [
            RosterEntry(device=device, public=signers[device].public, slot=at)
            for at, device in enumerate(DEVICES)
        ],
        Signer(bytes(31) + b"\x01"),
        aggregator=Signer(bytes(31) + b"\x02").public,
        gate=Signer(bytes(31) + b"\x03").public,
    )

    # 1. Devices train. What an update is worth (n, in buckets of tokens) is public; the update is not.
    adapter = np.zeros(DIM, np.float32)
    updates = {
        device: np.random.default_rng(at).normal(0.01, 0.01, DIM).astype(np.float32)
        for at, device in enumerate(DEVICES)
    }
    tokens_in_buckets = dict(zip(DEVICES, (2, 2, 2, 3, 2), strict=True))

    # 2. The aggregator forms a cohort. Its context is what all devices mask for; a device that is shown another one
    #    makes other masks, and nothing can be summed.
    codec = Codec(secure.clip_micro / 1e6, secure.scale_bits, secure.cohort_max)
    context = Context(
        run=b"one window      ",
        window=0,
        version=0,
        members=tuple(
            ContextMember(device, tokens_in_buckets[device], tokens_in_buckets[device], 0)
            for device in DEVICES
        ),
        bases_root=hashlib.sha256(adapter.tobytes()).digest(),
        terms_sha256=hashlib.sha256(b"the signed manifest").digest(),
        threshold=threshold(len(DEVICES), secure.colluding),
        k_min=secure.k_min,
        colluding=secure.colluding,
        weight_max=secure.weight_max,
        clip_micro=secure.clip_micro,
        scale_bits=secure.scale_bits,
        length=pack_vector(np.zeros(DIM, np.uint32), (0,)).size,
    )
    clients = {
        device: Client(context, device, signers[device], roster, Entropy.seeded(device.encode()))
        for device in DEVICES
    }
    server = Server(context, roster)
    records: list[tuple[DeviceId, Input]] = []  # what stands on the boundary's topics

    # 3. Keys: each device advertises two fresh keys, signed.
    for device, client in clients.items():
        advertised = client.advertise()
        server.on_advertise(device, advertised)
        records.append((device, advertised))
    keys = server.close_keys()

    # 4. Shares: each device shares its secrets among the others, sealed for each of them.
    for device, client in clients.items():
        sealed = client.share_keys(keys)
        server.on_sealed(device, sealed)
        records.append((device, sealed))
    shares, deliveries = server.close_shares()

    # 5. Masked updates: clipped, weighted, rounded to integers, and hidden under masks that cancel in the sum.
    alive = [device for device in DEVICES if device != SILENT]
    for device in alive:
        clipped = codec.clip(updates[device])
        n = tokens_in_buckets[device]
        vector = pack_vector(codec.encode(clipped, n, secure.weight_max, device.encode().ljust(32)), (n,))
        masked = clients[device].masked_input(shares, deliveries[device], vector)
        records.append((device, masked))
        server.on_masked(device, masked, hashlib.sha256(masked.astype("<u4").tobytes()).digest())
    included = server.close_masked()

    # 6. Consistency: each device signs the set that it was shown, so that all of them were shown the same.
    for device in alive:
        signed = clients[device].consistency(included)
        server.on_consistency(device, signed)
        records.append((device, signed))
    signatures = server.close_consistency()

    # 7. Unmasking: for the silent device its mask key, for all others their own mask's seed; never both.
    for device in alive:
        revealed = clients[device].unmask(signatures)
        server.on_unmask(device, revealed)
        records.append((device, revealed))
    decisions: list[Decision] = [keys, shares, included, signatures]
    total = server.finish().total

    # 8. The gate trusts nobody: it derives the same sum from the records.
    derived = rederive(context, roster, decisions, records).total
    same_sum = bool(np.array_equal(total, derived))

    # 9. The boundary's ledger takes the window; what crosses is its rounded sum, and O(1) numbers.
    moved, (n_of_all,) = unpack_sum(derived, DIM)
    base = context.bases_root
    leaves = [
        WindowLeaf(entry.device, tokens_in_buckets[DeviceId(entry.device)], 0, base, entry.upload_sha256, b"")
        for entry in included.entries
    ]
    summary = WindowSummary(
        window=0, heads=len(alive), n=n_of_all, weight=n_of_all, weight2=sum(tokens_in_buckets[d] ** 2 for d in alive),
        roster_root=roster_root(leaves), norm2=0, mean2=0, tokens=n_of_all * secure.bucket_tokens, loss=0,
        loss_tokens=0, eval_commit=0, eval_loss=0, eval_tokens=0,
    )  # fmt: skip
    ledger, form = Ledger(adapter), DeltaForm(DeltaCodec.INT16, DIM)
    ledger.add_window(summary, window_mean(moved, n_of_all, secure))
    delta = ledger.seal(form)

    # 10. The controller makes a commit; an auditor makes the same one from the same bytes.
    outer = outer_optimiser(
        OuterTerms(
            kind=OuterKind.AVERAGE, weighting=Weighting.TOKENS, lr_ppm=1_000_000, momentum_ppm=0, beta2_ppm=0,
            epsilon_ppb=1,
        ),
        boundaries=1,
        unit=1,
    )  # fmt: skip
    commits = []
    for _ in ("controller", "auditor"):
        values = form.integers(delta.payload, delta.exponent)
        weighted = WeightedDelta(values, delta.exponent, n_of_all, n_of_all)
        commits.append(outer.step(adapter, outer.initial(DIM), [weighted])[0])
    same_commit = commits[0].tobytes() == commits[1].tobytes()

    expected = sum(tokens_in_buckets[d] * updates[d] for d in alive) / sum(
        tokens_in_buckets[d] for d in alive
    )
    print(
        f"devices {len(DEVICES)}, one silent; bytes that crossed: {len(delta.payload)} for {DIM} parameters"
    )
    print(f"gate derives the aggregator's sum: {same_sum}")
    print(f"auditor derives the controller's commit: {same_commit}")
    print(f"largest distance to the plain weighted mean: {float(np.abs(commits[0] - expected).max()):.1e}")
    return 0 if same_sum and same_commit else 1


if __name__ == "__main__":
    sys.exit(main())
