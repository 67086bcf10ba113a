"""A stack of the compose files on an engine, under a name of its own."""

from __future__ import annotations

import time

from tests.containers.engine import Engine
from tests.docker.composed import DOCKER, ROOT

BUILD_SECONDS = 3600.0
IMAGE = "echelon:0.1.0"


def build_image(engine: Engine) -> float:
    """Build our image from the Dockerfile; seconds that it took.

    `TORCH_BUILD` and `TORCH_BUILDS` of the environment are passed on, as compose.yaml passes them.
    """
    begun = time.monotonic()
    command = ["docker", "build", "--network", "host", "--file", str(DOCKER / "Dockerfile"), "--tag", IMAGE]
    for name in ("TORCH_BUILD", "TORCH_BUILDS"):
        if value := engine.environment.get(name):
            command += ["--build-arg", f"{name}={value}"]
    engine.run([*command, str(ROOT)], timeout=BUILD_SECONDS)
    return time.monotonic() - begun
