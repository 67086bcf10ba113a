"""Deal whole documents to the devices of a boundary: iid, Dirichlet over domains, or by domain.

Every domain has a *share* per device (non-negative, summing to 1); documents are dealt so that tokens follow
the shares up to the size of one document. Training and validation documents use the same shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from echelon.errors import ConfigError
from echelon.training.data.encode import Document
from echelon.training.data.holdout import rank

Shares = Mapping[str, npt.NDArray[np.float64]]
"""Per domain, the share of each device: float64[devices]."""


def shares_of(
    documents: Sequence[Document], devices: int, alpha: float | None, by_domain: bool, seed: int
) -> Shares:
    """The share of each device in each domain: uniform, unless `alpha` or `by_domain` says otherwise.

    With `alpha`, each domain's shares are a draw from Dirichlet(alpha, ..., alpha), as in Hsu, Qi and Brown
    2019 (arXiv 1909.06335, section 3) with domains in the place of classes.

    Args:
        documents: those to be dealt; their domains and sizes are read.
        devices: how many devices there are.
        alpha: concentration of the Dirichlet draw; smaller is less even. None: no draw.
        by_domain: give whole domains, the largest first to the least loaded; where domains are few, devices
            share them.
        seed: of the draw.
    """
    tokens: dict[str, int] = {}
    for document in documents:
        tokens[document.domain] = tokens.get(document.domain, 0) + document.size
    if alpha is not None:
        return {domain: _dirichlet(alpha, devices, seed, domain) for domain in tokens}
    if by_domain:
        return _by_domain(tokens, devices)
    return {domain: np.full(devices, 1 / devices) for domain in tokens}


def _dirichlet(alpha: float, devices: int, seed: int, domain: str) -> npt.NDArray[np.float64]:
    entropy = int.from_bytes(rank(seed, "dirichlet", domain), "little")
    return np.random.Generator(np.random.PCG64(entropy)).dirichlet(np.full(devices, alpha))


def _by_domain(tokens: Mapping[str, int], devices: int) -> Shares:
    """Whole domains to devices, largest first to the least loaded; several devices share one if few."""
    order = sorted(tokens, key=lambda domain: (-tokens[domain], domain))
    shares = {domain: np.zeros(devices) for domain in order}
    if len(order) >= devices:
        load = [0] * devices
        for domain in order:
            device = load.index(min(load))
            shares[domain][device] = 1.0
            load[device] += tokens[domain]
        return shares
    holders = dict.fromkeys(order, 1)
    for _ in range(devices - len(order)):
        holders[max(order, key=lambda domain: tokens[domain] / holders[domain])] += 1
    first = 0
    for domain in order:
        shares[domain][first : first + holders[domain]] = 1 / holders[domain]
        first += holders[domain]
    return shares


def deal(documents: Sequence[Document], shares: Shares, devices: int, seed: int) -> list[list[Document]]:
    """One list of documents per device; every document is in exactly one. Lists may be empty.

    A document goes to the device that is furthest below its share, so a device ends less than one document
    above it. Documents with the same shares are dealt together.

    Args:
        documents: those to be dealt, in any order.
        shares: for each domain float64[devices], which adds up to 1.
        devices: how many lists are made.
        seed: decides the order among documents of about the same size.
    """
    groups: dict[bytes, list[Document]] = {}
    for document in documents:
        groups.setdefault(shares[document.domain].tobytes(), []).append(document)
    hands: list[list[Document]] = [[] for _ in range(devices)]
    for key, members in groups.items():
        share = np.frombuffer(key)
        missing = share * sum(document.size for document in members)
        # Larger documents first keeps hands even; within a factor of two the order is the seed's.
        for document in sorted(members, key=lambda d: (-d.size.bit_length(), rank(seed, "deal", d.id))):
            device = int(np.argmax(np.where(share > 0, missing, -np.inf)))
            missing[device] -= document.size
            hands[device].append(document)
    return hands


def fill_empty_hands(hands: list[list[Document]]) -> list[list[Document]]:
    """The same hands, after giving each empty one the smallest document of the one with most documents.

    Raises `ConfigError` when there are fewer documents than devices.
    """
    hands = [list(hand) for hand in hands]
    if sum(map(len, hands)) < len(hands):
        raise ConfigError(
            f"{sum(map(len, hands))} training documents cannot be dealt to {len(hands)} devices or shards; "
            "use fewer of them, more files or rows, or a smaller validation_fraction"
        )
    for hand in hands:
        if not hand:
            giver = max(hands, key=len)
            given = min(giver, key=lambda document: (document.size, document.id))
            giver.remove(given)
            hand.append(given)
    return hands
