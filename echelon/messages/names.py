"""Names of parties: what one may be called, and what is made of it.

A boundary's name becomes part of topics (`delta.NAME`), of principals (`NAME.gate`, the common name of a certificate
and the sender of a record) and of folders and files (`NAME/`, `NAME.sqlite`). No two parties have one of those in
common. So all names are checked here, and principals are put together here and nowhere else:

    NAME.aggregator, NAME.gate, NAME.witness,
    NAME.devices, NAME.replica                   fixed words after the one dot
    NAME.ID                                      an edge; its id is none of the fixed words
    a device's name                              no part of it between dots is a fixed word, and it is no edge's name
    controller, operator, auditor, ...           fixed words without a dot
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

PRINCIPALS = frozenset(
    {
        *("aggregator", "gate", "edge", "device", "replica", "witness"),
        *("controller", "operator", "auditor", "admin", "broker", "break-glass"),
    }
)
"""Roles, and principals that every broker knows by these names."""
PLACES = frozenset(
    {
        *("exchange", "devices", "edges", "witnesses", "slots"),
        *("owner", "brokers", "deployment", "authorities"),
    }
)
"""What brokers' files and deployments' folders are called beside those of boundaries."""
RESERVED = PRINCIPALS | PLACES
"""Not for boundaries, edges and witnesses; nor for devices, as a whole or as a part between dots."""
NAME_LENGTH = 32
"""Longest name of a boundary or a witness: with a role or an edge's id behind it, a common name still takes it (64)."""
ID_LENGTH = 24
"""Longest id of an edge."""

_WORD = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


def check_boundary(name: str) -> str:
    """The name, if a boundary may have it.

    Raises:
        ValueError: it may not; the message says why.
    """
    if len(name) > NAME_LENGTH or not _WORD.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot be part of a topic's name: use lower-case letters, digits and hyphens, at most "
            f"{NAME_LENGTH}"
        )
    if name in RESERVED:
        raise ValueError(f"a boundary may not be called {name}, which means something else: rename it")
    return name


def check_witness(name: str) -> str:
    """The name, if a witness may have it.

    Raises:
        ValueError: it may not; the message says why.
    """
    if len(name) > NAME_LENGTH or not _WORD.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"{name[:80]!r} cannot name a witness: use lower-case letters, digits and hyphens, at most {NAME_LENGTH}, "
            "and no word that means something else"
        )
    return name


def check_edge_id(name: str) -> str:
    """The id, if an edge may have it within its boundary.

    Raises:
        ValueError: it may not; the message says why.
    """
    if len(name) > ID_LENGTH or not _WORD.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot name an edge: use lower-case letters, digits and hyphens, at most {ID_LENGTH}"
        )
    if name in RESERVED:
        raise ValueError(f"an edge may not be called {name}, which means something else: rename it")
    return name


def check_edge(name: str, boundary: str) -> str:
    """The full name of an edge, if it may be one of that boundary's.

    Raises:
        ValueError: it may not; the message says why.
    """
    before, _, own = name.partition(".")
    if before != boundary:
        raise ValueError(f"edge {name[:80]!r} is not one of {boundary}: it is called {boundary}.ID there")
    check_edge_id(own)
    return name


def check_member(name: str) -> str:
    """The name of a device or an edge, if it stands for no other party; what characters it may have, its type says.

    Raises:
        ValueError: it does; the message says why.
    """
    if taken := sorted(RESERVED.intersection(name.split("."))):
        raise ValueError(
            f"a device or edge may not be called {name[:80]}: {taken[0]} means something else, rename it"
        )
    return name


def aggregator_of(boundary: str) -> str:
    """The principal that a boundary's aggregator is."""
    return f"{boundary}.aggregator"


def gate_of(boundary: str) -> str:
    """The principal that a boundary's gate is, inside and on the exchange."""
    return f"{boundary}.gate"


def devices_of(boundary: str) -> str:
    """The principal that all devices of a boundary are where they share one."""
    return f"{boundary}.devices"


def replica_of(boundary: str) -> str:
    """The principal that a replica of a boundary's device service is before it has a slot, and for its lease."""
    return f"{boundary}.replica"


def edge_of(boundary: str, edge: str) -> str:
    """The principal that an edge is; `edge` is its id."""
    return f"{boundary}.{edge}"


def witness_of(name: str) -> str:
    """The principal that a witness is."""
    return f"{name}.witness"


BoundaryName = Annotated[str, AfterValidator(check_boundary)]
"""Name of a boundary."""
WitnessName = Annotated[str, AfterValidator(check_witness)]
"""Name of a witness."""
EdgeId = Annotated[str, AfterValidator(check_edge_id)]
"""Name of an edge within its boundary."""
