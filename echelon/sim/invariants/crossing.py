"""What must hold of what crosses a boundary: it is what was sealed inside, and `global` is the same on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from echelon.actors.aggregator import without_source
from echelon.audit.records import StoredRecord, read_manifest
from echelon.audit.relayed import RelayedInside
from echelon.bus import Record
from echelon.laws.relay import relayed_commit
from echelon.messages.boundary import SealedDelta
from echelon.messages.exchange import SOURCE_HEADER, Commit, Delta
from echelon.sim.left import RunRecords


def crossed_as_sealed(left: RunRecords) -> Iterator[str]:
    """What crossed is what was sealed inside, and `global` stands inside as it stands outside."""
    for boundary in left.boundaries:
        sealed = {delta.seq: delta for delta in left.messages(boundary, "delta", SealedDelta)}
        for message in left.exchange[f"delta.{boundary}"]:
            if isinstance(message, Delta):
                delta = sealed.get(message.seq)
                if delta is None:
                    yield f"{boundary}: delta {message.seq} crossed and was never sealed"
                elif (delta.payload.sha256, delta.windows) != (message.payload.sha256, message.windows):
                    yield f"{boundary}: delta {message.seq} crossed otherwise than it was sealed"
        yield from _mirrored(left, boundary)


def origin_of(record: Record, outside: Mapping[int, Record]) -> Record | None:
    """The record of the exchange's `global` that a boundary's is a copy of, byte for byte; None if there is none.

    Args:
        record: of a boundary's `global`.
        outside: records of the exchange's `global` by offset.
    """
    offsets = [int.from_bytes(value, "big") for name, value in record.headers if name == SOURCE_HEADER]
    origin = outside.get(offsets[0]) if len(offsets) == 1 else None
    copied = without_source(record)
    if origin is None or (origin.key, origin.value, origin.headers) != (
        copied.key,
        copied.value,
        copied.headers,
    ):
        return None
    return origin


def _mirrored(left: RunRecords, boundary: str) -> Iterator[str]:
    outside = {record.offset: record for record in left.outcome.topics["exchange"]["global"]}
    relayed = {
        message.commit: message.payload
        for message in left.exchange["global"]
        if isinstance(message, Commit) and message.relayed
    }
    inside = RelayedInside(relayed)
    following = 0
    for record in left.outcome.topics[boundary]["global"]:
        commit = relayed_commit(record.headers)
        if commit is not None:
            bare = StoredRecord("global", record.offset, record.key, record.value, record.headers[:-1])
            if detail := inside.take(commit, bare):
                yield f"{boundary}: global@{record.offset}: {detail}"
            continue
        if ("kind", b"commit") in record.headers:
            number = read_manifest(without_source(record))[1]
            if isinstance(number, Commit) and inside.lacks(number.commit):
                yield f"{boundary}: global@{record.offset}: commit {number.commit} came without its adapter"
        origin = origin_of(record, outside)
        if origin is None:
            yield f"{boundary}: global@{record.offset} is no record of the exchange"
        elif origin.offset > following:
            yield f"{boundary}: global@{record.offset} was mirrored before what stands ahead of it"
            return
        else:
            following = max(following, origin.offset + 1)
    # A controller that dies as it closes the run may repeat its last records behind the close: nobody waits for those.
    closes = [offset for offset, record in outside.items() if ("kind", b"close") in record.headers]
    due = min(closes) + 1 if closes else len(outside)
    if left.outcome.closed and following < due:
        yield f"{boundary}: {due - following} records of the exchange's global are missing inside"
