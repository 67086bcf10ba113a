"""The privacy floor: what a set of devices must be like before anything that is summed over it may be released.

The floor holds for every sum by itself: a cohort's vectors, the part that an edge adds, the evaluations that only some
devices have. Heads: at least k_min + c, so that k_min honest devices are left when c of them work together with
whoever sees the sum. Weight: what is left when those c are subtracted still hides every single device among k_min of
its own size.
"""

from __future__ import annotations

from collections.abc import Sequence

from echelon.messages.floor import heads


def weight_holds(weights: Sequence[int], k_min: int, colluding: int) -> bool:
    """Whether for every device i: Σw without the c largest of the others ≥ k_min · w_i.

    The condition for the heaviest device implies all others: with weights in descending order,
    w_(c+2) + w_(c+3) + … ≥ (k_min - 1) · w_1.

    Args:
        weights: integer weights of the devices, each at least 1, in any order.
        k_min: fewest honest updates of its own size that every device hides among.
        colluding: c.
    """
    ordered = sorted(weights, reverse=True)
    return bool(ordered) and sum(ordered[colluding + 1 :]) >= (k_min - 1) * ordered[0]


def weight_cap(weights: Sequence[int], k_min: int, colluding: int) -> int:
    """The largest C with which the weights min(w, C) hold the floor.

    Without a cap, one device that trained much more than the others would keep its cohort below the floor for good.
    What is left of min(w, C) without the c + 1 largest, less (k_min - 1) · C, is concave in C and 0 at 0, so bisection
    finds the largest.

    Args:
        weights: of the cohort, in any order.
        k_min: fewest devices that a sum must be over.
        colluding: how many devices may tell the aggregator what they know.

    Returns:
        0 if there are fewer than k_min + c weights.
    """
    rest = sorted(weights, reverse=True)[colluding + 1 :]
    low, high = 0, max(weights, default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(weight, middle) for weight in rest) >= (k_min - 1) * middle:
            low = middle
        else:
            high = middle - 1
    return low


def fewest_left(uploading: int, threshold: int, k_min: int, colluding: int) -> int:
    """Fewest of the devices that may upload which the included set can still have: the threshold, or the floor.

    Args:
        uploading: devices in U2.
        threshold: t among all of them; 0 where neighbourhoods have thresholds of their own (a ring).
        k_min: as above.
        colluding: c.
    """
    return min(uploading, max(threshold, heads(k_min, colluding)))


def most_lost(uploading: int, threshold: int, k_min: int, colluding: int) -> int:
    """Most of the devices that may upload which may drop out: all but the `fewest_left`.

    Args:
        uploading: devices in U2.
        threshold: t among all of them; 0 where neighbourhoods have thresholds of their own (a ring).
        k_min: as above.
        colluding: c.
    """
    return uploading - fewest_left(uploading, threshold, k_min, colluding)


def lost_in_proportion(contributors: int, lost: int, uploading: int) -> int:
    """How many of the contributors to a sum drop out, rounded up, if of them as large a share does as of all devices.

    Args:
        contributors: devices that have something to add to this sum.
        lost: most devices that may drop out of all.
        uploading: all devices.
    """
    return -(-contributors * lost // uploading)


def share_lost(
    contributors: int, uploading: int, *, threshold: int, degree: int, k_min: int, colluding: int
) -> int:
    """How many contributors to a sum drop out if of them as large a share does as of all devices may; rounded up.

    Args:
        contributors: devices that have something to add to this sum.
        uploading: devices of U2.
        threshold: t, of the whole cohort or of a device's neighbourhood.
        degree: k, with how many others a device masks on a ring; 0: with all.
        k_min: the floor.
        colluding: c.
    """
    if degree:
        return lost_in_proportion(contributors, degree + 1 - threshold, degree + 1)
    lost = most_lost(uploading, threshold, k_min, colluding)
    return lost_in_proportion(contributors, lost, uploading)


def partial_sum_holds(contributors: int, lost: int, k_min: int, colluding: int) -> bool:
    """Whether a sum that only some of a window's devices add to has heads enough whoever drops out.

    It is decided before masking, when nobody can know yet who drops out. At worst all those who do are contributors.

    Args:
        contributors: devices of U2 that have something to add to this sum.
        lost: most devices of U2 that may drop out: see `most_lost`.
        k_min: as above.
        colluding: c.
    """
    return contributors - lost >= heads(k_min, colluding)


def partial_weight_holds(weights: Sequence[int], lost: int, k_min: int, colluding: int) -> bool:
    """Whether the weight floor holds for such a sum whoever drops out.

    At worst the heaviest stays and the next `lost` go: they hide it no more than devices that collude.

    Args:
        weights: of the contributors, in any order.
        lost: most of them that may drop out.
        k_min: as above.
        colluding: c.
    """
    return weight_holds(weights, k_min, colluding + lost)
