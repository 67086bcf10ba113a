"""Containers without an engine, for one rehearsal: namespaces, overlays and bind mounts as compose.yaml asks for them.

Everything in here runs as root inside namespaces of its own (`enter`), so that nothing of it can outlive the rehearsal
or be seen from outside: processes, mounts, bridges, addresses. What docker does beyond that is left out: memory limits,
its DNS (names stand in each container's /etc/hosts instead), seccomp filters, and the brokers' image, in whose place
Kafka's own classes run: the wrapper that the image's start script calls, then the broker.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docker import dockerfile
from tests.docker.composed import ROOT, Service
from tests.docker.dockerfile import Folder

BROKER_FOLDERS = dict.fromkeys(
    ("/mnt/shared/config", "/var/lib/kafka/data", "/opt/kafka/config", "/etc/kafka/docker"),
    Folder(1000, 1000, 0o755),
)
"""What the brokers' image has for its user. Of our own image only what the Dockerfile makes is there."""
NEW_VOLUME = Folder(0, 0, 0o755)
"""A new volume that covers no folder of the image. One that does gets that folder's owner and mode from docker."""
BASE = Path("/opt/base/site-packages")
"""Where a container sees the packages that this process runs with; the image has them in its venv."""


def enter(module: str, arguments: Sequence[str]) -> int:
    """Run a module of this repository as root of new namespaces; all of its processes end with it."""
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc"]
    return subprocess.run(
        [*command, sys.executable, "-m", module, *arguments], cwd=ROOT, check=False
    ).returncode


def sh(*command: str) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass
class Image:
    """What the Dockerfile makes, as folders: a virtual environment with the package's wheel, and the scripts."""

    folder: Path

    def build(self) -> None:
        """Build the wheel from this tree and install it without its dependencies, which are those of this process."""
        wheels = self.folder / "wheels"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        sh(*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(ROOT))
        (wheel,) = wheels.glob("echelon-*.whl")
        place = self.folder / "opt" / "venv"
        venv.create(place, symlinks=True)
        sh(*pip, "--python", str(place / "bin" / "python"), "install", "--no-deps", str(wheel))
        (site,) = place.glob("lib/python3*/site-packages")
        (site / "base.pth").write_text(f"{BASE}\n")
        script = place / "bin" / "echelon"
        head, body = script.read_text().split("\n", 1)
        assert head.startswith("#!"), head
        script.write_text(f"#!/opt/venv/bin/python\n{body}")
        for target, source in dockerfile.scripts().items():
            placed = self.folder / target.lstrip("/")
            placed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, placed)


@dataclass
class Net:
    """The networks of the project: a bridge each, and an address for every container on it."""

    names: Sequence[str]
    _given: dict[str, int] = field(default_factory=dict)

    def build(self) -> None:
        """Make the bridges, which have no address: nothing leads from one to another."""
        Path("/run/netns").mkdir(exist_ok=True)
        sh("mount", "-t", "tmpfs", "tmpfs", "/run/netns")  # in this mount namespace alone
        sh("ip", "link", "set", "lo", "up")
        for at, _ in enumerate(self.names):
            sh("ip", "link", "add", f"br{at}", "type", "bridge")
            sh("ip", "link", "set", f"br{at}", "up")

    def address(self, container: str, network: str) -> str:
        """The address of a container on a network, the same whenever it is asked for."""
        number = self._given.setdefault(container, len(self._given) + 2)
        return f"10.24.{self.names.index(network)}.{number}"

    def join(self, container: str, networks: Sequence[str]) -> Path:
        """A network namespace on these networks; a container that comes back gets its old one."""
        path = Path("/run/netns") / container
        if path.exists():
            return path
        sh("ip", "netns", "add", container)
        sh("ip", "-n", container, "link", "set", "lo", "up")
        for at, network in enumerate(networks):
            bridge = self.names.index(network)
            outer = f"v{self._given.setdefault(container, len(self._given) + 2)}n{bridge}"
            sh("ip", "link", "add", outer, "type", "veth", "peer", "name", f"eth{at}", "netns", container)
            sh("ip", "link", "set", outer, "master", f"br{bridge}", "up")
            address = f"{self.address(container, network)}/24"
            sh("ip", "-n", container, "addr", "add", address, "dev", f"eth{at}")
            sh("ip", "-n", container, "link", "set", f"eth{at}", "up")
        return path


class Container:
    """One container of a service."""

    def __init__(
        self, service: Service, name: str, work: Path, image: Image, net: Net, jars: Path, run_file: Path
    ) -> None:
        self.service, self.name, self.image, self.jars, self.run_file = service, name, image, jars, run_file
        self.work, self.net = work, net
        self.root = work / "roots" / name
        self.log = work / "logs" / f"{name}.log"
        self.netns = net.join(name, service.networks)
        self.process: subprocess.Popen[bytes] | None = None
        self._mounted = False

    # ---- its file system -------------------------------------------------------------------------

    def _mount(self) -> None:
        upper = self.work / "uppers" / self.name
        for path in (self.root, upper):
            path.mkdir(parents=True)
        sh("mount", "-t", "tmpfs", "tmpfs", str(upper))
        for name in ("upper", "work"):
            (upper / name).mkdir()
        layers = f"lowerdir=/,upperdir={upper}/upper,workdir={upper}/work"
        sh("mount", "-t", "overlay", "overlay", "-o", layers, str(self.root))
        for parent in (Path(sys.base_prefix), *Path(sys.base_prefix).parents):
            inside = self.root / parent.relative_to("/")
            inside.chmod(inside.stat().st_mode | 0o055)  # this machine's interpreter may lie in root's home
        for path, folder in self._folders.items():
            self._folder(path, folder)
        if not self.service.broker:
            shutil.copytree(self.image.folder / "opt", self.root / "opt", symlinks=True, dirs_exist_ok=True)
            self._bind(_site_packages(), str(BASE), read_only=True)
        else:
            self._broker_image()
        self._hosts()
        self._bind(Path("/proc"), "/proc")
        self._bind(Path("/dev"), "/dev")
        sh("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.root / "dev/shm"))
        for entry in self.service.fields.get("tmpfs", ("/tmp:mode=1777",)):
            target, _, options = entry.partition(":")
            sh("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.root / target.lstrip("/")))
        if self.service.fields.get("read_only"):
            for mount in self.service.mounts:
                self._place(mount.target, mount.named)
            sh("mount", "-o", "remount,ro", str(self.root))
        for mount in self.service.mounts:
            source = self.work / "volumes" / mount.source if mount.named else self.run_file
            if mount.named and not source.exists():
                source.mkdir(parents=True)
                self._give(source, self._folders.get(mount.target, NEW_VOLUME))
            self._bind(source, mount.target, read_only=mount.read_only)
        self._mounted = True

    def _broker_image(self) -> None:
        """The parts of the brokers' image that its start script uses."""
        self._bind(self.jars, "/opt/kafka/libs", read_only=True)
        defaults = self.root / "etc/kafka/docker"
        (defaults / "server.properties").write_text("")
        for name in ("log4j2.yaml", "tools-log4j2.yaml"):
            (defaults / name).write_text(
                "Configuration:\n  Appenders:\n    Console: {name: out, PatternLayout: {pattern: '%d %p %c: %m%n'}}\n"
                "  Loggers:\n    Root: {level: INFO, AppenderRef: [{ref: out}]}\n"
            )

    @property
    def _folders(self) -> Mapping[str, Folder]:
        return BROKER_FOLDERS if self.service.broker else dockerfile.folders()

    def _folder(self, path: str, folder: Folder) -> None:
        place = self.root / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        self._give(place, folder)

    @staticmethod
    def _give(place: Path, folder: Folder) -> None:
        os.chown(place, folder.uid, folder.gid)
        place.chmod(folder.mode)

    def _place(self, target: str, folder: bool) -> None:
        path = self.root / target.lstrip("/")
        if folder:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def _bind(self, source: Path, target: str, *, read_only: bool = False) -> None:
        place = self.root / target.lstrip("/")
        if not place.exists():
            self._place(target, source.is_dir())
        sh("mount", "--bind", str(source), str(place))
        if read_only:
            sh("mount", "-o", "remount,bind,ro", str(place))

    def _hosts(self) -> None:
        """Docker's DNS knows the names of one's own networks; here only the brokers' are asked for."""
        lines = ["127.0.0.1 localhost"]
        for network in self.service.networks:  # a broker's service has the name of its network
            lines.append(f"{self.net.address(network, network)} {network}")
        (self.root / "etc/hosts").write_text("\n".join(lines) + "\n")
        (self.root / "etc/resolv.conf").unlink(missing_ok=True)
        (self.root / "etc/resolv.conf").write_text("")

    # ---- its processes ---------------------------------------------------------------------------

    def _inside(self, command: Sequence[str]) -> list[str]:
        user, _, group = str(self.service.fields["user"]).partition(":")
        bounding = ",".join(
            ["-all", *(f"+{name.lower()}" for name in self.service.fields.get("cap_add", ()))]
        )
        rights = ["--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        rights += [f"--bounding-set={bounding}", "--inh-caps=-all"]
        return [
            *("nsenter", f"--net={self.netns}", "chroot", str(self.root), "setpriv", *rights),
            *("env", "-i", *(f"{name}={value}" for name, value in self.environment.items()), *command),
        ]

    @property
    def environment(self) -> Mapping[str, str]:
        """What the image and compose.yaml give it."""
        if self.service.broker:
            return {"PATH": "/usr/local/bin:/usr/bin:/bin", **self.service.environment}
        return {**dockerfile.environment(), **self.service.environment}

    def _command(self, more: Sequence[str] = ()) -> list[str]:
        if not self.service.broker:
            return [*self.service.entrypoint, *(more or self.service.command)]
        java = 'java $KAFKA_HEAP_OPTS -cp "/opt/kafka/libs/*"'
        setup = (
            f"{java} kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker "
            "--mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config"
        )
        start = (
            f"exec {java} -Dlog4j2.configurationFile=/opt/kafka/config/log4j2.yaml "
            "kafka.Kafka /opt/kafka/config/server.properties"
        )
        # As the image's script does: formatted storage is no fault.
        return [
            "bash",
            "-c",
            f'said=$({setup} 2>&1) || grep -qi "already formatted" <<<"$said" || {{ echo "$said"; exit 1; }}; {start}',
        ]

    def start(self, more: Sequence[str] = ()) -> None:
        """Start it, with another command if one is given."""
        if not self._mounted:
            self._mount()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._inside(self._command(more)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, command: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """What `docker exec` does: a command beside the service, as the same user."""
        return subprocess.run(
            self._inside(command), capture_output=True, text=True, timeout=timeout, check=False
        )

    def healthy(self) -> bool:
        """What its own check says."""
        kind, *command = self.service.fields["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(command).returncode == 0

    @property
    def code(self) -> int | None:
        """Exit status; None while it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait(self, timeout: float) -> int:
        """Its exit status, when it has ended."""
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> tuple[int, float]:
        """What `docker stop` does; exit status and seconds. It must end within its grace period."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        grace = float(str(self.service.fields.get("stop_grace_period", "10s")).rstrip("s"))
        return self.process.wait(grace), time.monotonic() - begun

    def pids(self) -> list[int]:
        """Every process in it."""
        inode = os.stat(self.netns).st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if (entry / "ns/net").stat().st_ino == inode:
                        found.append(int(entry.name))
                except OSError:
                    continue  # it ended meanwhile
        return found

    def memory(self) -> int:
        """Bytes that its processes hold: each one's own, and its share of what they share."""
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]
        return total


def _site_packages() -> Path:
    """Where this process has its packages from."""
    import pydantic

    return Path(pydantic.__file__).parents[1]
