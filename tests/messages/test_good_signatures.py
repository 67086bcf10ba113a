from __future__ import annotations

import pytest

from echelon.messages import good_signatures
from echelon.messages.envelope import Signer
from echelon.messages.good_signatures import GoodSignatures, verify_once

SIGNER, OTHER = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
MESSAGE = b"what is signed"
SIGNATURE = SIGNER.sign(MESSAGE)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages of the signatures that were really computed."""
    asked: list[bytes] = []
    verify = good_signatures.verify_signature

    def counting(public: bytes, signature: bytes, message: bytes) -> bool:
        asked.append(message)
        return verify(public, signature, message)

    monkeypatch.setattr(good_signatures, "verify_signature", counting)
    return asked


def test_a_good_signature_is_computed_once(computed: list[bytes]) -> None:
    good = GoodSignatures()
    assert all(good.verified(SIGNER.public, SIGNATURE, MESSAGE) for _ in range(3))
    assert computed == [MESSAGE]


def test_nothing_is_good_because_something_near_it_was() -> None:
    good = GoodSignatures()
    assert good.verified(SIGNER.public, SIGNATURE, MESSAGE)
    flipped = bytes([SIGNATURE[0] ^ 1]) + SIGNATURE[1:]
    attacks = [
        (SIGNER.public, flipped, MESSAGE),
        (SIGNER.public, SIGNATURE, MESSAGE + b"\x00"),
        (SIGNER.public, SIGNATURE, MESSAGE[:-1]),
        (OTHER.public, SIGNATURE, MESSAGE),
        (OTHER.public, OTHER.sign(b"another"), MESSAGE),
        # The same bytes in a row, cut elsewhere.
        (SIGNER.public + SIGNATURE[:1], SIGNATURE[1:], MESSAGE),
        (SIGNER.public[:-1], SIGNER.public[-1:] + SIGNATURE, MESSAGE),
        (SIGNER.public, SIGNATURE[:-1], SIGNATURE[-1:] + MESSAGE),
        (SIGNER.public, SIGNATURE + MESSAGE[:1], MESSAGE[1:]),
        (b"", SIGNER.public + SIGNATURE + MESSAGE, b""),
    ]
    for attack in attacks:
        assert not good.verified(*attack)
        assert not good.verified(*attack)
    assert len(good) == 1


def test_a_bad_signature_is_never_remembered(computed: list[bytes]) -> None:
    good = GoodSignatures()
    for _ in range(3):
        assert not good.verified(OTHER.public, SIGNATURE, MESSAGE)
    assert computed == [MESSAGE] * 3
    assert len(good) == 0


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(computed: list[bytes]) -> None:
    good = GoodSignatures(most=4)
    messages = [bytes([number]) for number in range(6)]
    for message in messages:
        assert good.verified(SIGNER.public, SIGNER.sign(message), message)
    assert len(good) == 4
    assert good.verified(SIGNER.public, SIGNER.sign(messages[5]), messages[5])
    assert computed == messages
    assert good.verified(SIGNER.public, SIGNER.sign(messages[0]), messages[0])
    assert computed == [*messages, messages[0]]


def test_all_actors_of_a_process_share_what_was_found_good(computed: list[bytes]) -> None:
    message = b"of the process"
    assert verify_once(OTHER.public, OTHER.sign(message), message)
    assert verify_once(OTHER.public, OTHER.sign(message), message)
    assert not verify_once(SIGNER.public, OTHER.sign(message), message)
    assert computed == [message] * 2
