"""A boundary delta in few bytes: the largest coordinates of every chunk, each a sign and one of two magnitudes.

A vector is cut into chunks of 4096 coordinates. Of n of them at most k = round(n · density), at least one, are
carried: the largest by magnitude, of equal ones those that come first. Each becomes ± one of two levels of its chunk,
and the rest is zero: it stays in the ledger's remainder, which sends it later. All that follows the first rounding to
int16 (`delta_codec.rounded`) is arithmetic of integers.

A coordinate is carried only where its level is less than twice its magnitude. So what is sent and what remains add up
to the vector exactly, in float64.

A payload is, one after the other:

    counts    uint16 for each chunk: how many coordinates it carries
    levels    two uint16 for each chunk, low and high, in units of 2**exponent; 0 and 0 where it carries none
    places    b bits for each carried coordinate: the lower ones of how many were passed over before it
    signs     a bit for each: 1 is negative
    which     a bit for each: 1 is the high level
    passed    the upper bits of `places` in unary: so many zeros, then a one

Numbers are little-endian, bits start with the highest of a byte, each of the last four begins with a byte of its own
and ends with zeros. b follows from the density alone. One vector has exactly one payload: levels that are not both
used are equal, and the exponent is the finest that fits, as in `delta_codec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError
from echelon.laws.delta_codec import MAX_EXPONENT, MIN_EXPONENT, Integers, largest, rounded
from echelon.messages.adapter import F64
from echelon.messages.exchange import MAX_DENSITY_PPM, MIN_DENSITY_PPM, DeltaCodec

CHUNK = 1 << 12
"""Coordinates of a chunk: a place in one takes 12 bits."""
_MILLION = 1_000_000
_GOLDEN_PPM = 481_212
"""ln((1 + √5) / 2) in millionths: where one bit more of `places` takes as many bits from `passed` as it costs."""
_OCTAVES = 4
_ROWS = 64  # chunks worked on at a time: they stay in the processor's cache
_PEAK = largest(DeltaCodec.INT16)

I16 = NDArray[np.int16]
I64Array = NDArray[np.int64]
Bits = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How many coordinates of a vector are carried.

    Attributes:
        dim: d, coordinates of the vector, at least 1.
        density_ppm: the share that is carried, in millionths.

    Raises:
        CodecError: a number is out of its range.
    """

    dim: int
    density_ppm: int

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise CodecError(f"a delta is a vector of at least one coordinate, not of {self.dim}")
        if not MIN_DENSITY_PPM <= self.density_ppm <= MAX_DENSITY_PPM:
            raise CodecError(
                f"a density of {self.density_ppm} millionths is outside {MIN_DENSITY_PPM}..{MAX_DENSITY_PPM}"
            )

    @property
    def chunks(self) -> int:
        """How many chunks the vector has; the last one may be shorter."""
        return -(-self.dim // CHUNK)

    def most(self, size: int) -> int:
        """k of a chunk of so many coordinates."""
        return max(1, (size * self.density_ppm + _MILLION // 2) // _MILLION)

    def bounds(self) -> I64Array:
        """k of every chunk, int64[chunks]."""
        bounds = np.full(self.chunks, self.most(CHUNK), np.int64)
        bounds[-1] = self.most(self.dim - (self.chunks - 1) * CHUNK)
        return bounds

    @property
    def low_bits(self) -> int:
        """b: how many bits of a place stand in `places`; 0 to 7."""
        bits = 0
        while self.density_ppm << bits < _GOLDEN_PPM:
            bits += 1
        return bits

    @property
    def longest(self) -> int:
        """Most bytes of a payload."""
        count = int(self.bounds().sum())
        passed = count + self.chunks * (CHUNK >> self.low_bits)
        return 6 * self.chunks + _bytes(count * self.low_bits) + 2 * _bytes(count) + _bytes(passed)


def encode(vector: F64, density_ppm: int) -> tuple[bytes, int]:
    """The payload of a vector, and its exponent.

    Args:
        vector: float64[d], finite.
        density_ppm: the share of the coordinates that is carried, in millionths.

    Raises:
        CodecError: empty, NaN or infinite, or too large, as `delta_codec.rounded`; a density out of range.
    """
    grid, exponent = rounded(vector, DeltaCodec.INT16)
    sparsity = Sparsity(grid.size, density_ppm)
    values = np.zeros(grid.size, np.int16)
    whole = grid.size // CHUNK * CHUNK
    step = _ROWS * CHUNK
    for start in range(0, whole, step):
        part = slice(start, min(start + step, whole))
        rows = grid[part].reshape(-1, CHUNK)
        values[part] = _levelled(rows, sparsity.most(CHUNK)).reshape(-1)
    if whole < grid.size:
        values[whole:] = _levelled(grid[None, whole:], sparsity.most(grid.size - whole))[0]
    peak = int(np.abs(values).max())  # never the lowest int16: `rounded` does not use it
    if peak == 0:
        return written(values, density_ppm), MIN_EXPONENT
    finer = 0
    while 2 * (peak << finer) <= _PEAK and exponent - finer > MIN_EXPONENT:
        finer += 1
    return written(values << finer, density_ppm), exponent - finer


def _levelled(rows: Integers, most: int) -> I16:
    """What of each row is carried, as levels with signs.

    Args:
        rows: int16[chunks, n], n at most 4096.
        most: k.

    Returns:
        int16[chunks, n]: zero but for at most k of each row.
    """
    size = rows.shape[1]
    # No two keys of a row are equal: which are the largest is one question with one answer.
    keys = np.abs(rows.astype(np.int32)) * CHUNK + np.arange(CHUNK - 1, CHUNK - 1 - size, -1, dtype=np.int32)
    largest_ones = np.partition(keys, size - most, axis=1)[:, size - most :].astype(np.int64)
    sizes, places = largest_ones // CHUNK, CHUNK - 1 - largest_ones % CHUNK
    low, high = _levels(sizes)
    level = np.where(2 * sizes > low + high, high, np.where(2 * sizes > low, low, 0))
    values = np.zeros(rows.shape, np.int16)
    np.put_along_axis(
        values, places, (np.sign(np.take_along_axis(rows, places, 1)) * level).astype(np.int16), 1
    )
    return values


def _levels(sizes: I64Array) -> tuple[I64Array, I64Array]:
    """The low and the high level of each chunk, int64[chunks, 1]; they may be equal.

    Each is the mean, rounded down, of those on its side of a threshold: the one of `_OCTAVES` powers of two below the
    largest which leaves the smallest sum of squares; the highest of equally good ones.
    """
    peak = sizes.max(axis=1, keepdims=True)
    best = np.full_like(peak, -1)
    low, high = peak.copy(), peak.copy()
    for octave in range(1, _OCTAVES + 1):
        upper = sizes << octave > peak
        above, count = _sums(sizes, upper)
        below, others = _sums(sizes, ~upper & (sizes > 0))
        taken = above * above // np.maximum(count, 1) + below * below // np.maximum(others, 1)
        better = taken > best
        best = np.where(better, taken, best)
        high = np.where(better, above // np.maximum(count, 1), high)
        low = np.where(better, below // np.maximum(others, 1), low)
    return np.where(low == 0, high, low), high


def _sums(sizes: I64Array, among: NDArray[np.bool_]) -> tuple[I64Array, I64Array]:
    total: I64Array = (sizes * among).sum(axis=1, keepdims=True)
    return total, among.sum(axis=1, keepdims=True, dtype=np.int64)


def written(values: I16, density_ppm: int) -> bytes:
    """The payload of a vector that has at most k coordinates and two magnitudes in every chunk.

    Args:
        values: int16[d], in units of 2**exponent.
        density_ppm: as in `encode`.

    Raises:
        CodecError: a chunk has more coordinates or other magnitudes.
    """
    sparsity = Sparsity(values.size, density_ppm)
    at = np.flatnonzero(values)
    chosen = values[at].astype(np.int64)
    sizes, chunk = np.abs(chosen), at // CHUNK
    counts = np.bincount(chunk, minlength=sparsity.chunks)
    if (counts > sparsity.bounds()).any():
        raise CodecError("a chunk has more coordinates than the density lets it carry")
    low = np.full(sparsity.chunks, _PEAK, np.int64)
    high = np.zeros(sparsity.chunks, np.int64)
    np.minimum.at(low, chunk, sizes)
    np.maximum.at(high, chunk, sizes)
    low = np.where(counts > 0, low, 0)
    if ((sizes != low[chunk]) & (sizes != high[chunk])).any():
        raise CodecError("a chunk has more than two magnitudes")
    gaps = at % CHUNK
    gaps[1:] -= np.where(chunk[1:] == chunk[:-1], gaps[:-1] + 1, 0)
    bits = sparsity.low_bits
    places = (gaps[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    passed = np.zeros(at.size + int((gaps >> bits).sum()), np.uint8)
    passed[np.cumsum((gaps >> bits) + 1) - 1] = 1
    which = (low[chunk] < high[chunk]) & (sizes == high[chunk])
    streams = (places.astype(np.uint8).reshape(-1), chosen < 0, which, passed)
    levels = np.stack((low, high), axis=1)
    header = counts.astype("<u2").tobytes() + levels.astype("<u2").tobytes()
    return header + b"".join(np.packbits(stream).tobytes() for stream in streams)


def integers(payload: bytes | memoryview, exponent: int, sparsity: Sparsity) -> I16:
    """The integers of a payload, int16[d].

    Args:
        payload: what `encode` wrote.
        exponent: an integer stands for that integer times 2**exponent.
        sparsity: of the run and its adapter.

    Raises:
        CodecError: what `encode` would not have written: another length, too many coordinates in a chunk, levels that
            are none, places outside a chunk, bits where there are none, an exponent out of range, or a grid that is
            not the finest that fits.
    """
    if not MIN_EXPONENT <= exponent <= MAX_EXPONENT:
        raise CodecError(f"exponent {exponent} is outside {MIN_EXPONENT}..{MAX_EXPONENT}")
    if not 6 * sparsity.chunks <= len(payload) <= sparsity.longest:
        raise CodecError(
            f"{len(payload)} bytes are no sparse delta of {sparsity.dim} coordinates: it has "
            f"{6 * sparsity.chunks} to {sparsity.longest}"
        )
    counts, low, high = _header(payload, sparsity)
    total = int(counts.sum())
    streams = _Streams(np.frombuffer(payload, np.uint8, offset=6 * sparsity.chunks))
    bits = sparsity.low_bits
    places = streams.take(total * bits, "places").reshape(total, bits).astype(np.int64)
    negative = streams.take(total, "signs").astype(np.bool_)
    which = streams.take(total, "levels").astype(np.bool_)
    ones = streams.ones(total)
    gaps = ((np.diff(ones, prepend=-1) - 1) << bits) | (places << np.arange(bits - 1, -1, -1)).sum(axis=1)
    chunk = np.repeat(np.arange(sparsity.chunks), counts)
    within = _within(gaps, counts)
    if (within >= np.minimum(CHUNK, sparsity.dim - chunk * CHUNK)).any():
        raise CodecError("a place of a sparse delta is outside its chunk")
    _check_levels(np.bincount(chunk[which], minlength=sparsity.chunks), counts, low < high)
    peak = int(high.max())
    if exponent > MIN_EXPONENT and 2 * peak <= _PEAK:
        raise CodecError(f"largest integer {peak}: not the canonical encoding, a finer grid fits")
    sizes = np.where(which, high[chunk], low[chunk])
    values = np.zeros(sparsity.dim, np.int16)
    values[chunk * CHUNK + within] = np.where(negative, -sizes, sizes)
    return values


def _header(payload: bytes | memoryview, sparsity: Sparsity) -> tuple[I64Array, I64Array, I64Array]:
    chunks = sparsity.chunks
    counts = np.frombuffer(payload, "<u2", chunks).astype(np.int64)
    if (counts > sparsity.bounds()).any():
        raise CodecError(
            "a chunk of a sparse delta has more coordinates than the run's density lets it carry"
        )
    levels = np.frombuffer(payload, "<u2", 2 * chunks, 2 * chunks).astype(np.int64).reshape(chunks, 2)
    low, high = levels[:, 0], levels[:, 1]
    if (
        (low > high).any()
        or (high > _PEAK).any()
        or ((low > 0) != (counts > 0)).any()
        or high[counts == 0].any()
    ):
        raise CodecError("the levels of a chunk of a sparse delta are no two magnitudes in ascending order")
    return counts, low, high


def _within(gaps: I64Array, counts: I64Array) -> I64Array:
    """Where each coordinate stands in its chunk, from how many were passed over before it."""
    ends = np.cumsum(gaps + 1)
    starts = np.concatenate(([0], ends))[np.cumsum(counts) - counts]
    within: I64Array = ends - 1 - np.repeat(starts, counts)
    return within


def _check_levels(highs: NDArray[np.integer[Any]], counts: I64Array, two: NDArray[np.bool_]) -> None:
    used = (highs > 0) & (highs < counts)
    if (used != two).any() or highs[~two].any():
        raise CodecError(
            "a chunk of a sparse delta names a level that it does not use: not the canonical encoding"
        )


class _Streams:
    """The streams of bits behind a payload's header, one after the other."""

    def __init__(self, data: Bits) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int, what: str) -> Bits:
        """The next stream, uint8[count] of zeros and ones.

        Raises:
            CodecError: it is cut off, or does not end with zeros.
        """
        end = self._at + _bytes(count)
        if end > self._data.size:
            raise CodecError(f"a sparse delta is cut off in its {what}")
        bits = np.unpackbits(self._data[self._at : end])
        self._at = end
        if bits[count:].any():
            raise CodecError(f"a sparse delta has bits behind its {what}: not the canonical encoding")
        return bits[:count]

    def ones(self, count: int) -> I64Array:
        """Where the ones of the last stream are, int64[count].

        Raises:
            CodecError: there are more or fewer, or bytes behind the last one.
        """
        found = np.flatnonzero(np.unpackbits(self._data[self._at :])).astype(np.int64)
        if found.size != count:
            raise CodecError(f"a sparse delta places {found.size} coordinates, and its chunks count {count}")
        if self._data.size - self._at != (int(found[-1]) // 8 + 1 if count else 0):
            raise CodecError("a sparse delta has bytes behind its last place: not the canonical encoding")
        return found


def _bytes(bits: int) -> int:
    return -(-bits // 8)
