"""Statements of changes of keys, on their way to the controller."""

from __future__ import annotations

import pytest

from echelon.errors import EchelonError
from echelon.messages.keys import StatementFile
from tests.laws.test_keys import GOOD


def test_a_statement_travels_as_a_file() -> None:
    file = StatementFile.of("key.next", GOOD)
    again = StatementFile.decode(file.encode())
    assert (again.change, again.statement()) == ("key.next", GOOD)
    for bad in (b"", b"{}", file.encode().replace(b"key.next", b"key.last"), file.encode()[:-9]):
        with pytest.raises(EchelonError, match="no statement"):
            StatementFile.decode(bad)
