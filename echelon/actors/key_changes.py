"""Changes of signing keys that the controller was given, until they stand on `global`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from echelon.actors.global_writer import GlobalWriter
from echelon.bus.base import Outgoing
from echelon.errors import StateError
from echelon.laws.keys import CONTROLLER, Keys
from echelon.messages.envelope import key_id
from echelon.messages.keys import KeyStatement, StatementFile
from echelon.messages.wire import Refused


@dataclass(frozen=True, slots=True)
class ChangesGiven:
    """Somebody gave the controller statements; those that it knows may be among them."""

    files: tuple[StatementFile, ...]


class KeyChanges:
    """Statements that may have to be written.

    Args:
        own: the public key that the controller signs with.
        files: statements that it was started with.
        log: takes what is wrong with a statement, once.
    """

    def __init__(self, own: bytes, files: Iterable[StatementFile], log: logging.Logger) -> None:
        self._own, self._log = own, log
        self._waiting = {file.encode(): file for file in files}
        self._told: set[bytes] = set()

    def add(self, given: ChangesGiven) -> None:
        """Take more of them."""
        self._waiting |= {data: file for file in given.files if (data := file.encode()) not in self._told}

    def due(self, keys: Keys, *, every: bool = True) -> tuple[str, KeyStatement] | None:
        """The kind and the statement to write next; whoever writes it asks again with the keys behind it.

        One of the controller's own key waits until the controller runs with that key, which then signs the record.

        Args:
            keys: as `global` leaves them.
            every: whether of every key; if not, of the controller's.
        """
        for data, file in list(self._waiting.items()):
            statement = file.statement()
            if not every and statement.actor != CONTROLLER:
                continue
            line = keys.line(statement.actor)
            if statement.number < len(line) and line[statement.number].public == statement.public:
                del self._waiting[data]  # it stands there already
                continue
            if statement.number > len(line):
                continue  # one before it may still come
            try:
                keys.check(file.change, statement)
            except Refused as error:
                del self._waiting[data]
                self._told.add(data)
                self._log.error(
                    "controller: a change of a key was given that does not hold: %s", error.detail
                )
                continue
            if statement.actor == CONTROLLER and statement.public != self._own:
                if data not in self._told:
                    self._told.add(data)
                    self._log.warning(
                        "controller: its key is to be followed by key %s: put that into its configuration, and "
                        "start it again", key_id(statement.public),
                    )  # fmt: skip
                continue
            del self._waiting[data]
            return file.change, statement
        return None

    def write(self, writer: GlobalWriter, *, every: bool = True) -> list[Outgoing]:
        """The records of the changes that are due; they count as written.

        Args:
            writer: of `global`.
            every: whether of every key; if not, of the controller's own.
        """
        records: list[Outgoing] = []
        while (keys := writer.keys) is not None:
            change = self.due(keys, every=every)
            if change is None:
                break
            kind, statement = change
            records.append(writer.change(kind, statement))
            self._log.info(
                "controller: %s, number %d, of the key of %s %d stands on `global`",
                kind, statement.number, statement.role.value, statement.place,
            )  # fmt: skip
        return records

    def check_own(self, keys: Keys) -> None:
        """Whether the controller may write with its key now.

        Raises:
            StateError: `global` names another one as the controller's.
        """
        current = keys.current(CONTROLLER)
        if current == self._own:
            return
        ended = any(span.public == self._own for span in keys.line(CONTROLLER))
        advice = (
            "that one has ended: put the newest key into its configuration"
            if ended
            else "give it the statement that names this key (`echelon keys rotate`, or `revoke` if the former is lost)"
        )
        raise StateError(
            f"controller: it has key {key_id(self._own)}, and by `global` the controller's is {key_id(current)}; "
            f"{advice}"
        )
