"""All data of one boundary, ready for training: one call from settings to blocks per device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.encode import Tokenizer, encode
from echelon.training.data.packing import Blocks, pack_training, pack_validation
from echelon.training.data.partition import deal, fill_empty_hands, shares_of
from echelon.training.data.sources import read_source
from echelon.training.data.split import split, split_digest


@dataclass(frozen=True)
class BoundaryData:
    """Blocks per device; the devices' validation slices together are the boundary's validation split.

    `training_tokens` counts each device's tokens; `validation_digest` is the SHA-256 of the split, which does
    not depend on the devices or the partition.
    """

    training: Mapping[str, Blocks]
    validation: Mapping[str, Blocks]
    training_tokens: Mapping[str, int]
    validation_tokens: int
    validation_digest: bytes


def load_boundary(
    settings: DataSettings, devices: Sequence[str], tokenizer: Tokenizer, sequence_length: int
) -> BoundaryData:
    """Read, encode, split, deal and pack. Deterministic from the settings, the device list and the files.

    Raises `ConfigError` when there is no data, too little to split, or fewer documents than devices.
    """
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise ConfigError("the model's tokenizer has no end-of-sequence token; set `eos_token` in its files")
    documents = encode(read_source(settings), tokenizer)
    training, validation = split(
        documents, settings.validation_fraction, settings.max_validation_tokens, settings.seed
    )
    count = len(devices)
    by_domain = settings.partition == "by-domain"
    shares = shares_of(documents, count, settings.dirichlet_alpha, by_domain, settings.seed)
    hands = fill_empty_hands(deal(training, shares, count, settings.seed))
    held = deal(validation, shares, count, settings.seed)
    return BoundaryData(
        training={
            device: pack_training(hand, sequence_length, eos)
            for device, hand in zip(devices, hands, strict=True)
        },
        validation={
            device: pack_validation(hand, sequence_length, eos)
            for device, hand in zip(devices, held, strict=True)
        },
        training_tokens={
            device: sum(document.size for document in hand)
            for device, hand in zip(devices, hands, strict=True)
        },
        validation_tokens=sum(document.size for document in validation),
        validation_digest=split_digest(validation),
    )
