"""A gate that announced one delta more before it had read that its key was revoked, and the gate that follows."""

from __future__ import annotations

from dataclasses import dataclass, field

from echelon.audit.heads import HEAD, HEAD_PREFIX, ORDINARY, Head, headers_of, logs_of
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.note import Checkpoint
from echelon.audit.records import StoredRecord
from echelon.messages.envelope import Signer
from tests.audit.synthetic import GATES, Exchange
from tests.audit.test_signers import change
from tests.audit.witnessed import tree_of, watched_terms
from tests.laws.test_keys import GATE_A, NEXT, stated

A = "delta.a"
HEAD_A = HEAD_PREFIX + A


@dataclass
class Overtaken:
    """The exchange up to the first delta of gate a's next key.

    Attributes:
        before: heads that the former key announced of what counts: one delta.
        late: the head that it announced of the delta more.
        after: what the next key announced.
        revocation: index in `global`'s records of what revoked the former key.
    """

    exchange: Exchange = field(default_factory=lambda: Exchange(watched_terms()))
    before: StoredRecord = field(init=False)
    late: StoredRecord = field(init=False)
    after: StoredRecord = field(init=False)
    revocation: int = field(init=False)

    def __post_init__(self) -> None:
        exchange, gate = self.exchange, self.exchange.gates[0]
        exchange.delta(0)
        exchange.delta(1)
        exchange.commit()
        former = tree_of(gate.records)
        self.before = self._head(0, former, 0, GATES[0])
        change(exchange, "key.end", stated("key.end", GATE_A, GATES[0], NEXT))
        self.revocation = len(exchange.main.records) - 1
        number, window = gate.number, exchange.next_window[0]
        exchange.delta(0)
        self.late = self._head(1, tree_of(gate.records), 1, GATES[0])
        gate.number, exchange.next_window[0], gate.signer = number, window, NEXT
        assert exchange.delta(0) is None
        exchange.delta(1)
        exchange.commit()
        self.tree = Tree()
        for value in (gate.records[place].value for place in self._counting()):
            self.tree.append_hash(leaf_hash(value))
        self.after = self._head(2, self.tree, 1, NEXT)

    def _counting(self) -> list[int]:
        manifests = [place for place, one in enumerate(self.exchange.gates[0].records) if one.key != b"chunk"]
        return [manifests[0], manifests[2]]

    def _head(self, offset: int, tree: Tree, old: int, signer: Signer) -> StoredRecord:
        name = logs_of(self.exchange.manifest)[A].origin
        note = Checkpoint(name, len(tree), tree.root()).sign(name, signer)
        proof = tuple(tree.consistency(old, len(tree))) if old else ()
        return StoredRecord(HEAD_A, offset, ORDINARY, Head(old, proof, note).encode(), headers_of(HEAD))


__all__ = ["HEAD_A", "A", "Overtaken"]
