"""A stack of the compose files on an engine, under a name of its own, and what may be done to it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from echelon.config.run import load as load_run
from tests.containers.engine import Engine, NoEngine
from tests.docker.composed import DOCKER, MAIN, ROOT

BUILD_SECONDS = 3600.0
UP_SECONDS = 1200.0
POLL_SECONDS = 1.0
IMAGE = "echelon:0.1.0"

ASK = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics', timeout=15).read().decode())"
"""Python that prints a service's metrics from inside."""


def compose_command(engine: Engine) -> list[str]:
    """The client of compose v2 that is installed.

    Raises:
        NoEngine: there is none.
    """
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is None:
            continue
        done = engine.run([*command, "version", "--short"], timeout=60, check=False)
        if done.returncode == 0 and done.stdout.strip().lstrip("v").startswith("2."):
            return command
    raise NoEngine(
        "compose v2 is not installed: `docker compose version` must answer (Debian's docker-compose 1.29 reads no "
        "memory limits and no pull policies)"
    )


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


def eventually(check: Callable[[], object], seconds: float, what: str) -> float:
    """Wait until something holds; the seconds that it took.

    Raises:
        AssertionError: it does not hold in time.
    """
    begun = time.monotonic()
    while not check():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(POLL_SECONDS)
    return time.monotonic() - begun


def metrics_in(said: str) -> Mapping[str, float]:
    """Metrics of a service's answer to `ASK` without labels but those of the service."""
    samples = [sample for family in text_string_to_metric_families(said) for sample in family.samples]
    return {
        found.name: found.value for found in samples if found.labels.keys() <= {"run", "boundary", "role"}
    }


class Stack:
    """One project of compose.

    Args:
        engine: where it runs.
        name: of the project; networks, volumes and containers carry it.
        files: of docker/, in order.
        folder: for the run file and the override of this machine.
        run: the run file of docker/ that is changed.
        commits: after how many the run closes.
        absent: services that are left out, since their images are not there.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        files: tuple[str, ...],
        folder: Path,
        *,
        run: Path,
        commits: int,
        absent: tuple[str, ...] = (),
    ) -> None:
        self.engine, self.name = engine, name
        self._compose = compose_command(engine)
        settings = yaml.safe_load(run.read_text("utf-8")) | {"name": name, "budget": {"commits": commits}}
        settings["sync"] = {"steps": 2, "windows": 1}  # short windows: what is tried here is not the training
        self.run_file = folder / "run.yaml"
        self.run_file.write_text(yaml.safe_dump(settings))
        load_run(self.run_file)
        local = folder / "local.yaml"
        mount = f"{self.run_file}:/etc/echelon/run.yaml:ro"
        services: dict[str, object] = {"init": {"build": {"network": "host"}, "volumes": [mount]}}
        services |= {service: {"profiles": ["absent"]} for service in absent}
        local.write_text(yaml.safe_dump({"services": services}))
        self._files = [str(DOCKER / file) for file in (MAIN, *files)] + [str(local)]

    def compose(self, *words: str, timeout: float = 300, check: bool = True) -> str:
        """What `docker compose WORDS` prints of this project.

        Raises:
            RuntimeError: it failed, and `check` is set.
        """
        files = [word for file in self._files for word in ("-f", file)]
        command = [*self._compose, "--project-name", self.name, *files, *words]
        return self.engine.run(command, timeout=timeout, check=check, folder=ROOT).stdout

    def up(self, *words: str) -> float:
        """`up --detach`; seconds that it took."""
        begun = time.monotonic()
        self.compose("up", "--detach", *words, timeout=UP_SECONDS)
        return time.monotonic() - begun

    def down(self, *words: str) -> None:
        """`down`, also of services that only people start."""
        self.compose("down", *words, timeout=600)

    # ---- its containers --------------------------------------------------------------------------

    def containers(self, service: str, *, every: bool = False) -> list[str]:
        """Ids of a service's containers that run, or of all; those of `run` are left out."""
        labels = {"project": self.name, "service": service, "oneoff": "False"}
        filters = [
            word
            for key, value in labels.items()
            for word in ("--filter", f"label=com.docker.compose.{key}={value}")
        ]
        found = self.engine.docker("ps", "--quiet", "--no-trunc", *(["--all"] if every else []), *filters)
        return sorted(found.split())

    def states(self) -> dict[str, list[tuple[str, int]]]:
        """(status, exit code) of every container, by service."""
        said = self.compose("ps", "--all", "--format", "json")
        found: dict[str, list[tuple[str, int]]] = {}
        for line in said.splitlines():
            one = json.loads(line)
            found.setdefault(one["Service"], []).append((one["State"], one["ExitCode"]))
        return found

    def inspect(self, container: str, what: str) -> str:
        """A field of a container, by docker's template."""
        return self.engine.docker("inspect", "--format", what, container).strip()

    def inside(self, container: str, *command: str, timeout: float = 60) -> tuple[int, str]:
        """Exit status and output of a command in a container, as its own user."""
        done = self.engine.run(["docker", "exec", container, *command], timeout=timeout, check=False)
        return done.returncode, done.stdout + done.stderr

    def kill_process(self, container: str) -> None:
        """End the container's first process as the kernel does when memory is short."""
        pid = self.inspect(container, "{{.State.Pid}}")
        self.engine.run(["kill", "-KILL", pid], timeout=10)

    def addresses(self, container: str) -> dict[str, str]:
        """Its address on each network, by the network's name in the compose file."""
        said = json.loads(self.inspect(container, "{{json .NetworkSettings.Networks}}"))
        return {name.removeprefix(f"{self.name}_"): one["IPAddress"] for name, one in said.items()}

    # ---- the run ---------------------------------------------------------------------------------

    def metrics(self, container: str) -> Mapping[str, float]:
        """Metrics without labels but those of the service; none while the service does not answer."""
        code, said = self.inside(container, "python", "-c", ASK)
        return {} if code else metrics_in(said)

    def ready(self, service: str, count: int = 1) -> bool:
        """Whether so many replicas of a service answer that they are ready."""
        found = self.containers(service)
        check = ("python", "/opt/echelon/healthcheck.py", "readyz")
        return len(found) == count and all(self.inside(one, *check)[0] == 0 for one in found)

    def commit(self) -> int:
        """The number of the newest commit; -1 while the controller does not answer."""
        running = self.containers("controller")
        return int(self.metrics(running[0]).get("echelon_commit", -1)) if running else -1

    def log(self, service: str) -> str:
        """The log of all of a service's containers."""
        return self.compose("logs", "--no-color", "--no-log-prefix", service)
