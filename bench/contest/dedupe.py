"""Near-duplicates: documents that share most of their word shingles with one that is kept."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

SHINGLE = 8
"""Words per shingle."""
JACCARD = 0.5
"""Least resemblance |A ∩ B| / |A ∪ B| of a near-duplicate (Broder 1997, section 2)."""
CONTAINMENT = 0.8
"""Least containment |A ∩ B| / |A| of a document that stands inside another (ibid.)."""
_WORD = re.compile(r"\w+|[^\w\s]")


def shingles(text: str, length: int = SHINGLE) -> frozenset[tuple[str, ...]]:
    """The set of runs of `length` words or signs, whatever the white space; a short text is one shingle."""
    words = _WORD.findall(text)
    if len(words) <= length:
        return frozenset({tuple(words)}) if words else frozenset()
    return frozenset(zip(*(words[start:] for start in range(length)), strict=False))


def near_duplicates(
    documents: Sequence[tuple[str, str]], *, jaccard: float = JACCARD, containment: float = CONTAINMENT
) -> Mapping[str, str]:
    """Which documents (name, text) to leave out, each with the name of a kept one that it repeats.

    Documents are taken in the order given and compared with those kept before: exactly, by an inverted index, since
    a few thousand files need no sketch. A document without a word is left out as its own duplicate.
    """
    kept: dict[str, int] = {}
    where: dict[tuple[str, ...], list[str]] = defaultdict(list)
    dropped: dict[str, str] = {}
    for name, text in documents:
        mine = shingles(text)
        if not mine:
            dropped[name] = name
            continue
        common: Counter[str] = Counter()
        for shingle in mine:
            common.update(where.get(shingle, ()))
        for other, shared in sorted(common.items()):
            union = len(mine) + kept[other] - shared
            if shared / union >= jaccard or shared / min(len(mine), kept[other]) >= containment:
                dropped[name] = other
                break
        else:
            kept[name] = len(mine)
            for shingle in mine:
                where[shingle].append(name)
    return dropped
