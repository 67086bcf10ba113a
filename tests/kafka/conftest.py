"""Real brokers for the tests here: three, started once for the session, unless there is no Java to run them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from echelon.errors import ConfigError
from tools.kafka.artifacts import jars, java
from tools.kafka.stack import Stack

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here is one of Kafka's, and all of them share one process and its brokers."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.kafka)
            item.add_marker(pytest.mark.xdist_group("kafka"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))  # the first one waits for three brokers to start


@pytest.fixture(scope="session")
def requires_kafka() -> None:
    """Skip where no broker can run; but a build that must test Kafka fails instead of passing without."""
    try:
        java()
        jars()
    except ConfigError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must run the Kafka tests: {error}")
        pytest.skip(f"no Kafka here: {str(error).splitlines()[0]}")


@pytest.fixture(scope="session")
def stack(requires_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three brokers that run: exchange, a and b. Who stops one starts it again before the test ends."""
    folder = tmp_path_factory.mktemp("kafka")
    with Stack(folder, ("exchange", "a", "b"), scram=True) as started:
        yield started
    shutil.rmtree(folder, ignore_errors=True)  # the logs of three brokers; what failed has been reported


@pytest.fixture(scope="module")
def clean_stack(stack: Stack) -> Iterator[Stack]:
    """The same three brokers without topics, rules and groups; and without those of this module afterwards."""
    stack.wipe()
    yield stack
    stack.wipe()
