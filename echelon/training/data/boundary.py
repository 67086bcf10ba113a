"""All data of one boundary, ready for training: one call from settings to blocks, or rows, per device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.encode import Document, Tokenizer, encode, encode_rows
from echelon.training.data.holdout import split, split_digest
from echelon.training.data.packing import Blocks, pack_training, pack_validation
from echelon.training.data.partition import deal, fill_empty_hands, shares_of
from echelon.training.data.rows import Rows, longest_first, pad_rows, padding_of
from echelon.training.data.sources import LeftOut, read_source
from echelon.training.learner import DataFacts

Part = TypeVar("Part")


@dataclass(frozen=True)
class BoundaryData(Generic[Part]):
    """Blocks, or rows, per device; the devices' validation slices together are the boundary's validation split.

    `training_tokens` counts each device's tokens; `validation_digest` is the SHA-256 of the split, which does
    not depend on the devices or the partition.
    """

    training: Mapping[str, Part]
    validation: Mapping[str, Part]
    training_tokens: Mapping[str, int]
    validation_tokens: int
    validation_digest: bytes
    facts: DataFacts


def load_boundary(
    settings: DataSettings, devices: Sequence[str], tokenizer: Tokenizer, sequence_length: int
) -> BoundaryData[Blocks]:
    """Read, encode, split, deal and pack. Deterministic from the settings, the device list and the files.

    Raises `ConfigError` when there is no data, too little to split, or fewer documents than devices.

    Args:
        settings: the boundary's source of data, its hold-out and how it is dealt.
        devices: names of the boundary's devices, in the order that they are dealt to.
        tokenizer: of the run's model. It must have an end-of-sequence token.
        sequence_length: targets of a block.
    """
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ConfigError("the model's tokenizer has no end-of-sequence token; set `eos_token` in its files")
    left_out = LeftOut()
    documents = encode(read_source(settings, left_out), tokenizer, left_out)
    return _dealt(
        settings,
        devices,
        documents,
        lambda hand: pack_training(hand, sequence_length, eos),
        lambda hand: pack_validation(hand, sequence_length, eos),
        left_out=left_out,
    )


def load_rows(
    settings: DataSettings,
    devices: Sequence[str],
    tokenizer: Tokenizer,
    sequence_length: int,
    labels: Sequence[str],
) -> BoundaryData[Rows]:
    """As `load_boundary` for a classifier: one row for each text, cut off at `sequence_length` tokens.

    Raises `ConfigError` as that does, and for a label that is not one of `labels`.

    Args:
        settings: the boundary's source of data, its hold-out and how it is dealt.
        devices: names of the boundary's devices, in the order that they are dealt to.
        tokenizer: of the run's model. It must have a padding token.
        sequence_length: most tokens of a row.
        labels: names of the labels. The place of a name is the number that the model predicts.
    """
    pad = padding_of(tokenizer)
    left_out = LeftOut()
    documents = encode_rows(
        read_source(settings, left_out), tokenizer, labels, sequence_length, left_out=left_out
    )
    return _dealt(
        settings,
        devices,
        documents,
        lambda hand: pad_rows(hand, sequence_length, pad),
        lambda hand: pad_rows(longest_first(hand), sequence_length, pad),
        left_out=left_out,
        whole=True,
    )


def _dealt(
    settings: DataSettings,
    devices: Sequence[str],
    documents: Sequence[Document],
    pack: Callable[[Sequence[Document]], Part],
    pack_held: Callable[[Sequence[Document]], Part],
    *,
    left_out: LeftOut,
    whole: bool = False,
) -> BoundaryData[Part]:
    made = divided(settings, len(devices), documents, left_out=left_out, whole=whole)
    return BoundaryData(
        training={device: pack(hand) for device, hand in zip(devices, made.hands, strict=True)},
        validation={device: pack_held(hand) for device, hand in zip(devices, made.held, strict=True)},
        training_tokens={
            device: sum(document.size for document in hand)
            for device, hand in zip(devices, made.hands, strict=True)
        },
        validation_tokens=made.facts.validation_tokens,
        validation_digest=split_digest(made.validation),
        facts=made.facts,
    )


@dataclass(frozen=True)
class Divided:
    """Documents of a boundary: what is held out, each device's share of the rest and of that, and all in counts."""

    validation: Sequence[Document]
    hands: Sequence[Sequence[Document]]
    held: Sequence[Sequence[Document]]
    facts: DataFacts


def divided(
    settings: DataSettings,
    count: int,
    documents: Sequence[Document],
    *,
    left_out: LeftOut,
    whole: bool,
) -> Divided:
    """Split documents into training and validation, and deal both.

    Args:
        settings: how.
        count: to how many devices or shards.
        documents: all of a boundary.
        left_out: what is not among them.
        whole: whether no document may be shortened.

    Raises:
        ConfigError: there are too few documents.
    """
    training, validation = split(
        documents,
        settings.validation_fraction,
        settings.max_validation_tokens,
        settings.seed,
        whole=whole,
    )
    by_domain = settings.partition == "by-domain"
    shares = shares_of(documents, count, settings.dirichlet_alpha, by_domain, settings.seed)
    hands = fill_empty_hands(deal(training, shares, count, settings.seed))
    held = deal(validation, shares, count, settings.seed)
    facts = DataFacts(
        documents=len(documents),
        held_out=len(validation),
        tokens=sum(document.size for document in documents),
        training_tokens=sum(document.size for document in training),
        validation_tokens=sum(document.size for document in validation),
        left_out=dict(left_out.rows.most_common()),
        mended=dict(left_out.mended.most_common()),
    )
    return Divided(validation, hands, held, facts)
