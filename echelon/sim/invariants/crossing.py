"""What must hold of what crosses a boundary: it is what was sealed inside, and `global` is the same on both sides."""

from __future__ import annotations

from collections.abc import Iterator

from echelon.messages.boundary import (
    SealedDelta,
)
from echelon.messages.exchange import Delta
from echelon.sim.left import RunRecords

SOURCE_OFFSET = "source-offset"


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


def _mirrored(left: RunRecords, boundary: str) -> Iterator[str]:
    outside = {record.offset: record for record in left.outcome.topics["exchange"]["global"]}
    following = 0
    for record in left.outcome.topics[boundary]["global"]:
        offsets = [int.from_bytes(value, "big") for name, value in record.headers if name == SOURCE_OFFSET]
        origin = outside.get(offsets[0]) if len(offsets) == 1 else None
        headers = tuple(header for header in record.headers if header[0] != SOURCE_OFFSET)
        if origin is None or (origin.key, origin.value, origin.headers) != (
            record.key,
            record.value,
            headers,
        ):
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
