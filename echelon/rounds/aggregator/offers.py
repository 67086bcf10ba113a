"""What a device's offer must say to be taken at its check-in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from echelon.errors import ProtocolError
from echelon.messages.boundary import Ready
from echelon.messages.wire import DeviceId


def shards_fit(shards: tuple[int, ...], dealt: int | None) -> bool:
    """Whether an offer may name these shards, ascending.

    Args:
        shards: what the update was trained on.
        dealt: into how many shards the boundary's data is dealt; None: devices have data of their own.
    """
    return not shards if dealt is None else bool(shards) and shards[-1] < dealt


def check_base(device: DeviceId, offer: Ready, version: int, published: Mapping[int, bytes]) -> None:
    """Check from which version the device trained.

    Args:
        device: who offers.
        offer: its check-in.
        version: the newest version.
        published: SHA-256 of the newest published versions.

    Raises:
        ProtocolError: the version is not reached yet, or another digest of it was published.
    """
    base = offer.base_version
    if base > version:
        raise ProtocolError(f"{device} trained from version {base}, the newest is {version}")
    if published.get(base, offer.base_sha256) != offer.base_sha256:
        raise ProtocolError(f"{device} names another digest of version {base} than was published")


def check_work(
    device: DeviceId, offer: Ready, *, n_max: int, dealt: int | None, edges: Collection[str]
) -> None:
    """Check how much the device trained, on what, and with whom.

    Args:
        device: who offers.
        offer: its check-in.
        n_max: the largest n of an update.
        dealt: into how many shards the boundary's data is dealt; None: devices have data of their own.
        edges: the boundary's edges.

    Raises:
        ProtocolError: n is out of range, or the shards or the edge are none of the boundary's.
    """
    if not 1 <= offer.n <= n_max:
        raise ProtocolError(f"{device} offers n = {offer.n}, outside 1..{n_max}")
    if not shards_fit(offer.shards, dealt):
        raise ProtocolError(
            f"{device} offers what was trained on the shards {list(offer.shards)[:8]}, and the boundary's data "
            f"is dealt into {dealt or 'none'}"
        )
    if bool(offer.edge) != bool(offer.jobs) or (offer.edge and offer.edge not in edges):
        raise ProtocolError(
            f"{device} offers {len(offer.jobs)} jobs with edge {offer.edge or 'none'}; edges of this boundary: "
            f"{', '.join(edges) or 'none'}"
        )
