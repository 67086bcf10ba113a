"""Settings that every test process shares. They must be in place before numpy or torch is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Test processes run side by side, one per core; threads inside each would only fight over those cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# Tests need no network: a model or a data set that is not here must fail at once, not after a time-out.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Some hundred processes are started here. Each would compile the package anew where none may keep its bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# A shared, busy machine says nothing about the code: no deadline per example. In CI the examples are the
# same every time, so that a red build can be repeated; elsewhere new ones are tried on each run.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "ci", settings.get_profile("local"), derandomize=True, print_blob=True, database=None
)
settings.load_profile("ci" if os.environ.get("CI") else "local")


TESTS = Path(__file__).parent
MEASURED = frozenset({"secagg", "jobs", "laws", "outer", "pace", "rounds", "audit", "messages", "elsa"})
"""Folders of tests beside the packages whose coverage is measured (pyproject.toml, tool.coverage)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs a broker's process is slow; and what is slow comes first, so that no process is left with it.

    To trace lines costs half of the time again. A package has to be covered by the tests beside it, so others are not
    traced.
    """
    for item in items:
        if item.get_closest_marker("kafka") is not None:
            item.add_marker(pytest.mark.slow)
        if item.path.relative_to(TESTS).parts[0] not in MEASURED:
            item.add_marker(pytest.mark.no_cover)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
