"""A docker engine for tests: the one that is configured, or a daemon of our own in a folder of its own.

An engine that answers (`DOCKER_HOST`, or the usual socket) is used as it is. Otherwise, as root, `dockerd` is started
with everything of it in one folder: `ECHELON_ENGINE`, or `~/.cache/echelon/engine`. Images stay there from one night to
the next.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60.0
FREE_BYTES = 30 << 30
"""What the images and their building need of the disk."""


class NoEngine(Exception):
    """No engine can run here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """One docker engine.

    Attributes:
        folder: where a daemon of our own has its data, and where base images are made.
        own: whether the daemon is ours, so that its images may be what we want.
        environment: of every client.
    """

    folder: Path
    own: bool
    environment: Mapping[str, str]

    def docker(self, *words: str, timeout: float = 120) -> str:
        """What `docker WORDS` prints.

        Raises:
            subprocess.CalledProcessError: it failed; `stderr` says why.
        """
        return self.run(["docker", *words], timeout=timeout).stdout

    def run(
        self, command: Sequence[str], *, timeout: float, check: bool = True, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a client of this engine.

        Args:
            command: the client and its arguments.
            timeout: seconds it may take.
            check: whether a failure is raised; what the client said is then part of the message.
            folder: where it runs.
        """
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd=folder, env=self.environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done


def place() -> Path:
    """The folder of a daemon of our own."""
    if chosen := os.environ.get("ECHELON_ENGINE"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "echelon" / "engine"


def find() -> Engine:
    """An engine that answers now.

    Raises:
        NoEngine: none does.
    """
    if shutil.which("docker") is None:
        raise NoEngine("there is no docker client on PATH (Debian: apt install docker.io)")
    folder = place()
    if (folder / "docker.sock").exists():
        engine = Engine(
            folder, True, {**os.environ, "DOCKER_HOST": f"unix://{folder}/docker.sock", **_builder()}
        )
        if _answers(engine):
            return engine
    engine = Engine(folder, False, {**os.environ, **_builder()})
    if _answers(engine):
        return engine
    raise NoEngine("no docker engine answers")


def running() -> bool:
    """Whether an engine answers now."""
    try:
        find()
    except NoEngine:
        return False
    return True


def start() -> Engine:
    """An engine that answers, started if need be.

    Raises:
        NoEngine: none answers and none can be started; the message says what is missing.
    """
    try:
        return find()
    except NoEngine as error:
        if os.geteuid() != 0:
            raise NoEngine(f"{error}, and only root may start one") from None
        missing = [name for name in ("docker", "dockerd", "iptables") if shutil.which(name) is None]
        if missing:
            raise NoEngine(
                f"{error}, and to start one {', '.join(missing)} must be on PATH "
                "(Debian: apt install docker.io iptables)"
            ) from None
    folder = place()
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < FREE_BYTES:
        raise NoEngine(f"{folder}: {free >> 30} GiB are free, and images take up to {FREE_BYTES >> 30}")
    command = ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    command += ["--host", f"unix://{folder}/docker.sock", "--pidfile", str(folder / "pid")]
    with (folder / "dockerd.log").open("ab") as log:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and daemon.poll() is None:
        try:
            return find()
        except NoEngine:
            time.sleep(0.5)
    if daemon.poll() is None:
        daemon.terminate()
    last = (folder / "dockerd.log").read_text("utf-8", "replace").splitlines()[-1:]
    raise NoEngine(f"dockerd does not start here: {' '.join(last)[-500:]}")


def stop() -> None:
    """End a daemon of our own; nothing where there is none."""
    try:
        pid = int((place() / "pid").read_text())
        os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        return
    until = time.monotonic() + START_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.2)


def _answers(engine: Engine) -> bool:
    try:
        return engine.run(["docker", "version"], timeout=30, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _builder() -> dict[str, str]:
    """The classic builder where the plugin of the new one is missing."""
    done = subprocess.run(["docker", "buildx", "version"], capture_output=True, timeout=30, check=False)
    return {} if done.returncode == 0 else {"DOCKER_BUILDKIT": "0"}
