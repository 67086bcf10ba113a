"""docker/init.py as a module: it is a script of the image, not part of the package."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from tests.docker.composed import DOCKER


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


init = _load("init")
healthcheck = _load("healthcheck")
