from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import ProtocolError
from echelon.secagg.entropy import Entropy
from echelon.secagg.shamir import PRIME, Interpolation, deal


def is_prime(n: int) -> bool:
    """Miller-Rabin with the first 40 primes as bases: error below 4**-40 for a number that was not made to fool it."""
    small = [p for p in range(2, 180) if all(p % q for q in range(2, p))][:40]
    if any(n % p == 0 for p in small):
        return n in small
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in small:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_field_is_the_smallest_prime_above_2_to_the_256() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME))


@settings(deadline=None, max_examples=50)
@given(secret=st.binary(min_size=32, max_size=32), n=st.integers(1, 12), data=st.data())
def test_any_t_shares_give_the_secret_back(secret: bytes, n: int, data: st.DataObject) -> None:
    t = data.draw(st.integers(1, n))
    points = data.draw(st.lists(st.integers(1, 300), min_size=n, max_size=n, unique=True))
    shares = dict(zip(points, deal(secret, points, t, Entropy.seeded(secret)), strict=True))
    chosen = tuple(data.draw(st.permutations(points))[:t])
    interpolation = Interpolation(chosen)
    assert interpolation.secret([shares[x] for x in chosen]) == secret
    for x in points:
        assert interpolation.share([shares[x] for x in chosen], x) == shares[x]
    if t > 1:
        fewer = Interpolation(chosen[1:])
        assert fewer.secret([shares[x] for x in chosen[1:]]) != secret


def test_t_minus_1_shares_fit_every_secret() -> None:
    """Perfect secrecy: for any secret there is a missing share that leads to it."""
    points = [1, 2, 3]
    shares = deal(b"\x11" * 32, points, 3, Entropy.seeded(b""))
    for other in (bytes(32), b"\xff" * 32, b"\x42" * 32):
        through = Interpolation((1, 2, 1000))
        # the share at 1000 of the polynomial through (0, other), (1, ·), (2, ·)
        weights = through.at_zero
        known = sum(w * int.from_bytes(s, "big") for w, s in zip(weights[:2], shares[:2], strict=True))
        missing = (int.from_bytes(other, "big") - known) * pow(weights[2], -1, PRIME) % PRIME
        assert through.secret([shares[0], shares[1], missing.to_bytes(33, "big")]) == other


def test_shares_outside_the_field_and_wrong_secrets() -> None:
    interpolation = Interpolation((1, 2))
    assert interpolation.secret([b"\xff" * 33, bytes(33)]) is None
    assert interpolation.share([b"\xff" * 33, bytes(33)], 3) is None
    largest = (PRIME - 1).to_bytes(33, "big")
    assert interpolation.secret([largest, largest]) is None  # p - 1 is no 32-byte string


def test_dealing_and_interpolating_need_proper_arguments() -> None:
    entropy = Entropy.seeded(b"")
    for points, t in (([1, 2], 3), ([1, 2], 0), ([1, 1], 1), ([0, 1], 1)):
        with pytest.raises(ProtocolError):
            deal(bytes(32), points, t, entropy)
    with pytest.raises(ProtocolError):
        deal(bytes(31), [1], 1, entropy)
    for points in ((), (1, 1), (0, 1)):
        with pytest.raises(ProtocolError):
            Interpolation(points)
