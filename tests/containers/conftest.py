"""An engine with images, once for all tests here; and the figures that they leave."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import base_images
from tests.containers import engine as engines
from tests.containers.engine import Engine, NoEngine
from tests.containers.stack import build_image, compose_command

Figures = dict[str, object]


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Written as JSON to the file that `ECHELON_FIGURES` names, if it names one."""
    found: Figures = {}
    yield found
    if path := os.environ.get("ECHELON_FIGURES"):
        Path(path).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def engine(figures: Figures) -> Iterator[Engine]:
    """An engine with the base images and ours; one of our own is ended again, unless it ran before."""
    try:
        before = engines.running()
        found = engines.start()
    except NoEngine as error:
        pytest.skip(f"no containers: {error}")
    try:
        compose_command(found)
        images = base_images.build(found)
        figures["base_images"] = {
            kind: {"name": name, "stand_in": base_images.stand_in(found, name)}
            for kind, name in images.items()
        }
        figures["build_seconds"] = round(build_image(found))
        yield found
    except NoEngine as error:
        pytest.skip(f"no containers: {error}")
    finally:
        if not before:
            engines.stop()
