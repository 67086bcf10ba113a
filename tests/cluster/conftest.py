"""One cluster for all tests here, with the images that pods need; and the figures that they leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, place
from tests.containers import base_images
from tests.containers.conftest import Figures, engine, figures
from tests.containers.engine import Engine, NoEngine
from tests.containers.stack import IMAGE

__all__ = ["engine", "figures"]


@pytest.fixture(scope="session")
def cluster(engine: Engine, figures: Figures) -> Iterator[Cluster]:
    """A cluster that is ready; it is ended again."""
    try:
        found = Cluster(place(), engine)
    except NoEngine as error:
        pytest.skip(f"no cluster: {error}")
    try:
        found.start()
        for image in (IMAGE, base_images.names()["kafka"]):
            found.take(image)
        yield found
    finally:
        found.stop()
