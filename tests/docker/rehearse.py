"""Runs compose.yaml without an engine: every service's own command, environment, user, mounts and networks.

    python -m tests.docker.rehearse [--split] [--commits 3] [--folder DIR]        (as root, on Linux, with Java)

Three networks without a way between them, a broker on each, four devices a boundary; on the way a replica joins and
another leaves, every certificate is renewed, and the exchange's broker is restarted. Says what it saw; exit status 1
when anything was not as it should be. With `--split` compose.split.yaml stands over it: an edge in each boundary. See
`containers` for what is not docker's here.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tests.docker.composed import MAIN, RUN, SPLIT, SPLIT_RUN, Service, load
from tests.docker.containers import Container, Image, Net, enter

MODULE = "tests.docker.rehearse"
METRICS = "import urllib.request as u; print(u.urlopen('http://{}:9464/metrics', timeout=5).read().decode())"
CONNECT = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 9092), 2).close(); print("yes")
    except OSError as error:
        print("no", error)
"""
WRITE = """
import os
for path in ("/etc/echelon/x", "/opt/x", "/opt/venv/x", "/var/lib/echelon/x", "/tmp/x"):
    try:
        open(path, "w").close(); os.unlink(path); print(path)
    except OSError:
        pass
"""
PLANES = {"a": "boundary-a", "b": "boundary-b", "exchange": "exchange"}


class Rehearsal:
    """One run of the whole project."""

    def __init__(self, folder: Path, jars: Path, run_file: Path, commits: int, files: Sequence[str]) -> None:
        self.folder, self.jars, self.original, self.commits = folder, jars, run_file, commits
        project = load(*files)
        self.services = project.services
        self.net = Net(list(project.networks))
        self.image = Image(folder / "image")
        self.run_file = folder / "run.yaml"
        self.running: dict[str, Container] = {}
        self._probers: dict[str, Container] = {}
        self.peak: dict[str, int] = {}
        self.restarts: dict[str, int] = {}
        self.faults: list[str] = []
        self.begun = time.monotonic()

    # ---- words -----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begun:4.0f} s] {text}", flush=True)

    def expect(self, good: bool, what: str) -> None:
        self.say(f"{'ok    ' if good else 'FAULT '}{what}")
        if not good:
            self.faults.append(what)

    # ---- containers ------------------------------------------------------------------------------

    def container(self, service: Service, name: str) -> Container:
        return Container(service, name, self.folder, self.image, self.net, self.jars, self.run_file)

    def job(self, name: str, *command: str, timeout: float = 240) -> str:
        """Run a service that ends; what it wrote. Its own failure is a fault of the rehearsal."""
        number = sum(1 for path in (self.folder / "logs").glob(f"{name}.*"))
        container = self.container(self.services[name], name if not number else f"{name}.{number}")
        begun = time.monotonic()
        container.start(command)
        code = container.wait(timeout)
        said = container.log.read_text("utf-8", "replace")
        shown = " ".join((*container.service.entrypoint, *(command or container.service.command)))
        self.expect(code == 0, f"{name}: `{shown}` exit {code}, {time.monotonic() - begun:.1f} s")
        if code:
            print(said, flush=True)
        return said

    def start(self, service: str, name: str | None = None) -> Container:
        """Start a service that stays."""
        container = self.container(self.services[service], name or service)
        container.start()
        self.running[container.name] = container
        return container

    def look(self) -> None:
        """Restart what failed, as compose would, and take the largest memory seen."""
        for name, container in self.running.items():
            if container.code not in (None, 0) and self.restarts.get(name, 0) < 5:
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self.say(f"{name} ended with {container.code}: started again")
                container.start()
            if container.code is None:
                self.peak[name] = max(self.peak.get(name, 0), container.memory())

    def until(self, what: str, true: Callable[[], bool], timeout: float) -> None:
        """Wait until something is true; a fault when it does not become so."""
        end = time.monotonic() + timeout
        while not true() and time.monotonic() < end:
            time.sleep(1)
            self.look()
        self.expect(true(), what)

    def scraped(self, container: Container) -> str:
        """/metrics as Prometheus on one of its networks reads it: from another container, by address."""
        network = container.service.networks[-1]
        address = self.net.address(container.name, network)
        reader = self.prober(network)
        return reader.run(["python", "-c", METRICS.format(address)]).stdout

    def prober(self, network: str) -> Container:
        """A container of the image on one network that runs nothing."""
        name = f"prober-{network}"
        if name not in self._probers:
            fields = {**self.services["topics-a"].fields, "networks": [network], "volumes": []}
            found = self.container(Service(name, fields), name)
            found.start(["--version"])
            found.wait(60)
            self._probers[name] = found
        return self._probers[name]

    # ---- the play --------------------------------------------------------------------------------

    def play(self) -> int:
        settings = yaml.safe_load(self.original.read_text("utf-8"))
        settings["budget"] = {"commits": self.commits}
        self.run_file.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.net.build()
        try:
            self.prepare()
            self.walls()
            self.changes()
            self.end()
        except (RuntimeError, TimeoutError, OSError) as error:
            self.expect(False, f"the rehearsal itself: {error}")
        self.table()
        print("\n".join([f"\n{len(self.faults)} faults", *self.faults]))
        return 1 if self.faults else 0

    def prepare(self) -> None:
        """From nothing to every service running."""
        self.job("init")
        for plane in ("exchange", "boundary-a", "boundary-b"):
            self.start(plane)
        brokers = [self.running[plane] for plane in PLANES.values()]
        self.until("three brokers are healthy", lambda: all(broker.healthy() for broker in brokers), 300)
        for plane in PLANES:
            self.job(f"topics-{plane}")
        for plane in ("a", "b"):
            self.job(f"shards-{plane}")
        for service in self.services.values():
            if service.ours and not service.job and not service.name.startswith("device"):
                self.start(service.name)
        for plane in ("a", "b"):
            for number in range(self.services[f"device-{plane}"].fields["deploy"]["replicas"]):
                self.start(f"device-{plane}", f"device-{plane}-{number}")
        ours = [container for container in self.running.values() if container.service.ours]
        self.until(f"{len(ours)} services are healthy", lambda: all(one.healthy() for one in ours), 300)

    def walls(self) -> None:
        """What each container can reach, write, and is allowed."""
        addresses = [self.net.address(plane, plane) for plane in PLANES.values()]
        for container in self.running.values():
            if not container.service.ours or container.name.endswith(("-2", "-3")):
                continue
            said = container.run(["python", "-c", CONNECT, *addresses]).stdout.splitlines()
            reached = {plane for plane, answer in zip(PLANES.values(), said, strict=True) if answer == "yes"}
            self.expect(
                reached == set(container.service.networks),
                f"{container.name} reaches the brokers of {', '.join(sorted(reached))} and no other",
            )
            written = container.run(["python", "-c", WRITE]).stdout.split()
            self.expect(
                written == ["/var/lib/echelon/x", "/tmp/x"],
                f"{container.name} can write {' '.join(written)} only",
            )
            for pid in container.pids():
                status = Path(f"/proc/{pid}/status").read_text()
                found = dict(re.findall(r"^(Uid|CapEff|CapBnd|NoNewPrivs):\s+(\S+)", status, re.MULTILINE))
                good = found == {"Uid": "1000", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1"}
                if not good:
                    self.expect(False, f"{container.name}: process {pid} has {found}")

    def changes(self) -> None:
        """Scaling, metrics, renewal and a broker's restart while the run goes on."""
        controller = self.running["controller"]
        self.until("the first commit", lambda: self.commit() >= 1 or controller.code is not None, 600)
        for container in [one for one in self.running.values() if one.service.ours and one.code is None]:
            text = self.scraped(container)
            role = container.name.partition("-")[0]
            self.expect(
                f'role="{role}"' in text and "echelon_loop_stall_seconds_bucket" in text,
                f"{container.name} serves {len(text.splitlines())} lines of metrics to its network",
            )
        added = self.start("device-a", "device-a-new")
        self.until("a fifth replica of device-a is ready", lambda: self.ready(added), 300)
        code, seconds = self.running["device-a-1"].stop()
        self.expect(code == 0, f"device-a-1 left within its grace period: exit {code}, {seconds:.1f} s")
        said = self.job("init", *self.services["init"].command, "--renew")
        self.expect("certificates are new" in said, "every certificate was renewed")
        code, seconds = self.running["exchange"].stop()
        self.expect(code in (0, 143), f"the exchange's broker stopped: exit {code}, {seconds:.1f} s")
        self.running["exchange"].start()
        self.until("it is back", self.running["exchange"].healthy, 300)

    def commit(self) -> int:
        found = re.search(
            r"^echelon_commit\{[^}]*\} (\S+)", self.scraped(self.running["controller"]), re.MULTILINE
        )
        return int(float(found[1])) if found else 0

    def ready(self, container: Container) -> bool:
        return container.run(["python", "/opt/echelon/healthcheck.py", "readyz"]).returncode == 0

    def end(self) -> None:
        """To the close of the run, then what auditor and operators find."""
        ours = [one for one in self.running.values() if one.service.ours]
        self.until("every service ended", lambda: all(one.code is not None for one in ours), 1200)
        for container in ours:
            self.expect(container.code == 0, f"{container.name} ended with {container.code}")
        said = self.job("auditor")
        print("\n".join(said.splitlines()[-12:]))
        for plane in PLANES:
            self.job(f"operator-{plane}")
        said = self.job("init")
        self.expect("the deployment is there" in said, "init, run again, changes nothing")
        for plane in PLANES.values():
            code, seconds = self.running[plane].stop()
            self.expect(code in (0, 143), f"{plane}'s broker stopped: exit {code}, {seconds:.1f} s")
        self.expect(not self.restarts, f"no service had to be restarted: {self.restarts}")

    def table(self) -> None:
        """The largest memory of each container beside the limit that compose would set."""
        print("\nmemory, MiB (largest seen; the limit in compose.yaml)")
        for name, size in sorted(self.peak.items()):
            limit = self.running[name].service.fields["deploy"]["resources"]["limits"]["memory"]
            allowed = int(limit[:-1]) * (1024 if limit[-1] == "g" else 1)
            print(f"  {name:<16} {size / 2**20:7.0f} {allowed:7d}")
            if size / 2**20 > allowed:
                self.faults.append(f"{name} would have been killed: {size / 2**20:.0f} MiB of {allowed}")


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog=MODULE, description="Run compose.yaml without an engine.")
    parser.add_argument(
        "--commits", type=int, default=3, help="budget of the run, instead of docker/run.yaml's"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep volumes and logs there (default: a new folder in /tmp)"
    )
    parser.add_argument("--split", action="store_true", help="compose.split.yaml over compose.yaml")
    parser.add_argument("--run", type=Path, help="another run file than the compose file's own")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    files, run = ((MAIN, SPLIT), SPLIT_RUN) if given.split else ((MAIN,), RUN)
    run = given.run or run
    if given.inside is not None:
        return Rehearsal(given.folder, given.inside, run, given.commits, files).play()

    from tools.kafka.artifacts import jars

    folder = given.folder or Path(tempfile.mkdtemp(prefix="echelon-rehearsal-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"volumes and logs are in {folder}", flush=True)
    Image(folder / "image").build()
    inside = ["--inside", str(jars()), "--folder", str(folder.absolute()), "--run", str(run.absolute())]
    inside += ["--split"] if given.split else []
    return enter(MODULE, [*inside, "--commits", str(given.commits)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
