"""The federation that the brokers here serve: two boundaries with three devices and an edge each, one witness."""

from __future__ import annotations

from echelon.provision.kafka import Scope
from tools.kafka.stack import Stack

PRINCIPALS = {
    "a": ("a-0", "a-1", "a.edge-0", "a.aggregator", "a.gate", "operator", "auditor"),
    "b": ("b-0", "b.aggregator", "b.gate", "operator", "auditor"),
    "exchange": ("controller", "a.gate", "b.gate", "w.witness", "operator", "auditor"),
}
"""Who has a certificate of each broker, without those that may do everything."""


def scope(stack: Stack, broker: str, principal: str = "break-glass") -> Scope:
    settings = stack[broker].settings(principal)
    if broker == "exchange":
        return Scope(broker=settings, plane="exchange", boundaries=("a", "b"), witnesses=("w",))
    devices = tuple(f"{broker}-{number}" for number in range(3))
    edges = (f"{broker}.edge-0",)
    return Scope(broker=settings, plane="boundary", boundary=broker, devices=devices, edges=edges, shards=4)
