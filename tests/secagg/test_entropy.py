from __future__ import annotations

import pytest

from echelon.errors import ConfigError
from echelon.secagg.entropy import Entropy


def test_seeded_entropy_is_a_stream() -> None:
    a, b = Entropy.seeded(b"x"), Entropy.seeded(b"x")
    assert a.token(5) + a.token(40) == b.token(45)
    assert Entropy.seeded(b"y").token(16) != Entropy.seeded(b"x").token(16)
    with pytest.raises(ConfigError, match="gave 3 bytes"):
        Entropy(lambda size: b"abc").token(4)
