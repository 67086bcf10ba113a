"""The data of a boundary, read in pieces: counted, split and dealt, with everything that is wrong in it.

Up to `EXACT` tokens the counts are those of a run: the same code splits and deals. Above, every document is read and
counted, but one batch in `SAMPLED` is made tokens; tokens and splits are estimated from the characters. Nothing of a
document is kept then, so memory does not grow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from echelon.errors import ConfigError
from echelon.preflight.findings import MAX_FAULTS, RunFault, SourceFacts
from echelon.training.data.boundary import divided
from echelon.training.data.conversations import Completion, Conversation
from echelon.training.data.encode import Document, Tokenizer, encode, encode_rows
from echelon.training.data.sources import LeftOut, RawDocument, check_left_out, documents_of
from echelon.training.learner import BoundarySpec, DataFacts

T = TypeVar("T")

EXACT = 1 << 22
"""Tokens of a boundary up to which all of its documents are kept."""
SAMPLED = 32
"""Of so many batches one is made tokens, once there are more."""
BATCH = 64
ALIKE = 3
"""Rows of a file with one and the same fault that are listed each; more are counted."""
_ROW = re.compile(r":\d+(?=[: ])")
"""The number of a row, or line, behind a file's name."""


@dataclass(slots=True)
class _Alike:
    """Faults that differ in the row alone: how many are listed, the last one, and how many more there are."""

    listed: int
    place: int
    last: str
    more: int = 0


class Tally(LeftOut):
    """Counts what is left out, and collects what is wrong instead of ending at the first fault."""

    def __init__(self, where: str, faults: list[RunFault], told: Callable[[int], None]) -> None:
        super().__init__()
        self.where, self.faults, self.count, self.others = where, faults, 0, 0
        self._told = told
        self._alike: dict[str, _Alike] = {}
        self._described = 0

    def refuse(self, error: ConfigError) -> None:
        """Take a fault down, in a line of its own unless `ALIKE` rows of the same file have it already."""
        self.count += 1
        message = str(error)
        kind = _ROW.sub(":", message, count=1)
        alike = self._alike.get(kind)
        if self._described < MAX_FAULTS and (alike is None or alike.listed < ALIKE):
            self._described += 1
            self._alike[kind] = _Alike(1 if alike is None else alike.listed + 1, len(self.faults), message)
            self.faults.append(RunFault(self.where, message))
        elif alike is not None:
            alike.more += 1
            rows = "one more row" if alike.more == 1 else f"{alike.more:,} more rows"
            self.faults[alike.place] = RunFault(self.where, f"{alike.last} (and {rows} of this file)")
        else:
            self.others += 1

    def tell(self) -> None:
        """Tell how much was read."""
        self._told(self.read_bytes)


class Reading:
    """One pass over the data of a boundary.

    Args:
        spec: the boundary.
        tokenizer: the model's; None: the data is read and counted, but not made tokens.
        labels: classes, for a classifier.
        length: most tokens of a sequence.
        tally: takes what is left out, and what is wrong.
    """

    def __init__(
        self,
        spec: BoundarySpec,
        tokenizer: Tokenizer | None,
        labels: Sequence[str],
        length: int,
        tally: Tally,
    ) -> None:
        self._data, self._spec, self._tokenizer = spec.data, spec, tokenizer
        self._labels, self._length, self._tally = labels, length, tally
        self.documents = 0
        self._characters = self._seen = self._tokens = 0
        self._kept: list[Document] | None = []

    def read(self) -> SourceFacts | None:
        """Read everything; None where there is nothing to say, because of faults."""
        for number, batch in enumerate(_batched(documents_of(self._data, self._tally), BATCH)):
            self._take(batch, sampled=self._kept is not None or number % SAMPLED == 0)
            self._tally.tell()
        if self._tally.count:
            return None
        check_left_out(self._data, self._tally, self.documents)
        return None if self._tokenizer is None else self._facts()

    def _take(self, batch: Sequence[RawDocument], *, sampled: bool) -> None:
        characters = sum(map(_characters, batch))
        self._characters += characters
        if self._tokenizer is None or not sampled:
            self.documents += len(batch)
            return
        encoded = self._encoded(batch, self._tokenizer)
        self.documents += len(encoded)
        self._seen += characters
        self._tokens += sum(document.size for document in encoded)
        if self._kept is not None:
            self._kept += encoded
            if self._tokens > EXACT:
                self._kept = None

    def _encoded(self, batch: Sequence[RawDocument], tokenizer: Tokenizer) -> list[Document]:
        """The documents of a batch that can be made tokens; what is wrong with the others is taken down."""
        try:
            return self._encode(batch, tokenizer)
        except ConfigError as error:
            if len(batch) == 1:
                self._tally.refuse(error)
                return []
        return [one for document in batch for one in self._encoded([document], tokenizer)]

    def _encode(self, batch: Sequence[RawDocument], tokenizer: Tokenizer) -> list[Document]:
        if self._data.label_field is not None:
            return encode_rows(batch, tokenizer, self._labels, self._length, left_out=self._tally)
        return encode(batch, tokenizer, self._tally)

    def _facts(self) -> SourceFacts:
        if self._kept is not None:
            whole = self._data.label_field is not None
            made = divided(self._data, len(self._spec.devices), self._kept, left_out=self._tally, whole=whole)
            return SourceFacts(made.facts, exact=True)
        tokens = self._tokens * self._characters // max(1, self._seen)
        fraction = self._data.validation_fraction
        held = min(self.documents - 1, max(1, round(fraction * self.documents)))
        if self.documents - held < len(self._spec.devices):
            raise ConfigError(
                f"{self.documents} documents cannot be dealt to {len(self._spec.devices)} devices or shards; use fewer "
                "of them, or more files or rows"
            )
        facts = DataFacts(
            documents=self.documents,
            held_out=held,
            tokens=tokens,
            training_tokens=round(tokens * (1 - fraction)),
            validation_tokens=min(round(tokens * fraction), self._data.max_validation_tokens),
            left_out=dict(self._tally.rows.most_common()),
            mended=dict(self._tally.mended.most_common()),
        )
        return SourceFacts(facts, exact=False)


def check_source(
    spec: BoundarySpec,
    tokenizer: Tokenizer | None,
    labels: Sequence[str],
    length: int,
    tally: Tally,
) -> SourceFacts | None:
    """Read the data of a boundary; see the module's docstring.

    Args:
        spec: the boundary.
        tokenizer: the model's, or None where it could not be loaded.
        labels: classes, for a classifier.
        length: most tokens of a sequence.
        tally: takes what is left out, and what is wrong.

    Returns:
        Its counts; None where something is wrong, or without a tokenizer.
    """
    try:
        return Reading(spec, tokenizer, labels, length, tally).read()
    except ConfigError as error:
        tally.refuse(error)
        return None


def _characters(document: RawDocument) -> int:
    content = document.content
    if isinstance(content, str):
        return len(content)
    if isinstance(content, Completion):
        return len(content.prompt) + len(content.text)
    turns = content.turns if isinstance(content, Conversation) else content
    return sum(len(turn.content or "") + len(str(turn.fields)) for turn in turns)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
