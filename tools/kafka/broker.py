"""One Kafka broker of the native stack: its folder, its certificates and its process.

The process is a session of its own and outlives whoever started it; its pid stands in a file. A signal is sent only to
a process whose command line names this broker's own properties file, so a stale pid file does no harm.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from echelon.config.broker import BrokerSettings, SaslSettings, SecuritySettings
from echelon.errors import BusError, ConfigError, LimitExceeded
from echelon.provision.kafka.admin import Connection
from echelon.provision.pki import BREAK_GLASS, BROKER, Authority, write_private, write_public
from tools.kafka.properties import Listening, render, templates

START_TIMEOUT = 300.0
"""Seconds that a broker may take until it answers a client, on a busy machine."""
STOP_TIMEOUT = 30.0
"""Seconds between SIGTERM and SIGKILL."""
FORMAT_TIMEOUT = 300.0

# Client compiler and serial collector: a broker of tests should start soon and be small rather than be fast for long.
JVM = (
    "-Xms96m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Xshare:auto",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """TCP ports of one broker on loopback. `scram` is None without a listener for passwords."""

    client: int
    controller: int
    scram: int | None = None


class Broker:
    """One broker on loopback. Its topics, certificates and ports stay in its folder when it stops.

    Attributes:
        name: `exchange`, or the boundary's name.
        folder: everything of this broker, and nothing else.
        ports: where it listens.
        authority: the certificate authority that it alone trusts.
    """

    def __init__(
        self, name: str, folder: Path, ports: Ports, *, jvm: Sequence[str] = JVM, extra: str = ""
    ) -> None:
        """Find its files, or make its authority and its certificate when they are not there yet.

        Args:
            name: `exchange`, or the boundary's name.
            folder: everything of this broker.
            ports: where it listens.
            jvm: options of the virtual machine.
            extra: properties that stand after those of the templates.

        Raises:
            ConfigError: the folder cannot be written, or holds an authority that cannot be used.
        """
        self.name = name
        self.folder = folder.absolute()
        self.ports = ports
        self._jvm = tuple(jvm)
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        ca, key = self.folder / "ca.pem", self.folder / "ca-key.pem"
        if ca.exists():
            self.authority = Authority.load(ca, key)
        else:
            key.unlink(missing_ok=True)  # written first: without the certificate it is half an authority
            self.authority = Authority.create(f"echelon {name}")
            self.authority.save(ca, key)
        if not (self.folder / "broker.pem").exists():
            service = name if name == "exchange" else f"boundary-{name}"
            write_private(
                self.folder / "broker.pem",
                self.authority.issue(BROKER, ["localhost", "127.0.0.1", service], days=3650),
            )

    # ---------------------------------------------------------------------------------------------- where it is

    @property
    def url(self) -> str:
        """Where certificates are taken: `kafka://127.0.0.1:port`."""
        return f"kafka://127.0.0.1:{self.ports.client}"

    @property
    def scram_url(self) -> str | None:
        """Where passwords are taken; None without that listener."""
        return None if self.ports.scram is None else f"kafka://127.0.0.1:{self.ports.scram}"

    @property
    def log(self) -> Path:
        """What the broker writes down: starts, refused handshakes, denied requests."""
        return self.folder / "broker.log"

    def settings(self, principal: str) -> BrokerSettings:
        """How a principal reaches this broker. Its certificate is issued at the first call and kept.

        Raises:
            ConfigError: the principal's name cannot stand in a certificate.
        """
        path = self.folder / "principals" / f"{principal}.pem"
        if not path.exists():
            write_private(path, self.authority.issue(principal))
        return BrokerSettings(
            url=self.url, security=SecuritySettings(ca=self.folder / "ca.pem", certificate=path)
        )

    def scram_settings(self, user: str) -> BrokerSettings:
        """How a user with a password reaches this broker. The user is added to the broker at the first call.

        Raises:
            ConfigError: the broker has no listener for passwords.
            BusError: the broker does not answer.
        """
        from echelon.provision.kafka.users import put_user

        if self.scram_url is None:
            raise ConfigError(f"broker {self.name} takes no passwords; start its stack with scram=True")
        path = self.folder / "principals" / f"{user}.password"
        if not path.exists():
            password = base64.b64encode(os.urandom(24)).decode()
            put_user(Connection(self.settings(BREAK_GLASS)), user, password)
            write_private(path, password.encode() + b"\n")
        return BrokerSettings(
            url=self.scram_url,
            security=SecuritySettings(
                ca=self.folder / "ca.pem", sasl=SaslSettings(username=user, password_file=path)
            ),
        )

    # --------------------------------------------------------------------------------------------- its process

    @property
    def pid(self) -> int | None:
        """Process id while the broker's process lives, whoever started it; else None."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process.pid  # in its first moment the system knows no command line of it yet
            self._process = None  # our own child is dead, and reaped by that look
        try:
            pid = int((self.folder / "pid").read_text("ascii"))
        except (OSError, ValueError):
            return None
        return pid if pid > 1 and str(self._properties) in _command_line(pid) else None

    @property
    def running(self) -> bool:
        """Whether the broker's process lives; it may be paused."""
        return self.pid is not None

    def launch(self, java: Path, jars: Path, cluster: str) -> None:
        """Start the process, after formatting its storage where that is new; do not wait until it answers.

        Args:
            java: the `java` to run it with.
            jars: folder of Kafka's jar files.
            cluster: id of the cluster, 22 characters of base64url.

        Raises:
            ConfigError: a port is taken, or storage cannot be formatted; the message has Kafka's own words.
        """
        if self.running:
            return
        for port in (self.ports.client, self.ports.controller, self.ports.scram):
            if port is not None and not is_free(port):
                raise ConfigError(
                    f"broker {self.name}: port {port} is taken by another process; end that one, or delete "
                    f"{self.folder} and start anew"
                )
        listening = Listening(
            bind="127.0.0.1",
            host="127.0.0.1",
            port=self.ports.client,
            controller_port=self.ports.controller,
            scram_port=self.ports.scram,
            data=self.folder / "data",
            secrets=self.folder,
        )
        self._properties.unlink(missing_ok=True)
        write_public(self._properties, f"{render(listening)}\n{self._extra}".encode())
        command = [str(java), *self._jvm, "-cp", f"{jars}/*"]
        command += [
            f"-Dlog4j2.configurationFile={templates() / 'log4j2.properties'}",
            f"-Dbroker.log={self.log}",
        ]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(command, cluster)
        with (self.folder / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                [*command, "kafka.Kafka", str(self._properties)],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        (self.folder / "pid").write_text(f"{self._process.pid}\n", "ascii")

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Return when the broker answers a client over mutual TLS and every partition has a leader.

        Raises:
            ConfigError: confluent-kafka is missing.
            BusError: the process ended.
            LimitExceeded: `timeout` seconds passed; the message has the end of the broker's log.
        """
        until = time.monotonic() + timeout
        connection = Connection(self.settings(BREAK_GLASS))
        said = "nothing yet"
        while time.monotonic() < until:
            if not self.running:
                raise BusError(
                    f"broker {self.name} ended before it was ready; it said:\n{self._last_words()}"
                )
            if is_free(
                self.ports.client
            ):  # nobody listens yet: no need to ask, and to make the client back off
                time.sleep(0.05)
                continue
            try:
                cluster = connection.metadata(timeout=min(2.0, max(0.1, until - time.monotonic())))
            except BusError as error:
                said = str(error)
                connection = Connection(
                    self.settings(BREAK_GLASS)
                )  # the old one waits longer at each failure
                continue
            leaders = [part.leader for topic in cluster.topics.values() for part in topic.partitions.values()]
            if cluster.brokers and all(leader >= 0 for leader in leaders):
                return
            said = f"{len(cluster.brokers)} brokers, {leaders.count(-1)} partitions without a leader"
            time.sleep(0.1)
        raise LimitExceeded(
            f"broker {self.name} was not ready after {timeout:g} s ({said}); the end of its log:\n{self._last_words()}"
        )

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop it by SIGTERM, and by SIGKILL when it still lives after `timeout` seconds. Its topics stay."""
        if self.signal(signal.SIGTERM):
            self.signal(signal.SIGCONT)  # a paused process takes no other signal
            if not self._gone(timeout):
                _log.warning("broker %s did not stop within %g s: killing it", self.name, timeout)
                self.kill()
        (self.folder / "pid").unlink(missing_ok=True)

    def kill(self) -> None:
        """Kill it by SIGKILL, as a machine that loses power would end it, and wait until it is gone.

        Raises:
            LimitExceeded: it is still there after some seconds.
        """
        if self.signal(signal.SIGKILL) and not self._gone(STOP_TIMEOUT):
            raise LimitExceeded(f"broker {self.name} is still there {STOP_TIMEOUT:g} s after SIGKILL")

    def pause(self) -> None:
        """Stop its process by SIGSTOP: connections stay open and nothing answers. Returns when every thread stands.

        Raises:
            LimitExceeded: it still runs after some seconds.
        """
        pid = self.pid
        until = time.monotonic() + 10
        self.signal(signal.SIGSTOP)
        while pid is not None and not _stands(pid):
            if time.monotonic() > until:
                raise LimitExceeded(f"broker {self.name} (pid {pid}) still runs 10 s after SIGSTOP")
            time.sleep(0.01)

    def resume(self) -> None:
        """Let a paused process go on."""
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the broker's process; False when it has none."""
        pid = self.pid
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    # ------------------------------------------------------------------------------------------------ its folder

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _format(self, command: list[str], cluster: str) -> None:
        command = [*command, "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        command += ["--cluster-id", cluster, "--config", str(self._properties)]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, timeout=FORMAT_TIMEOUT, check=True,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            said = "\n".join(str(error.stdout).strip().splitlines()[-8:])
            raise ConfigError(
                f"broker {self.name}: its storage cannot be formatted; Kafka said:\n{said}"
            ) from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"broker {self.name}: its storage cannot be formatted: {error}") from error

    def _gone(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        # A killed process loses its command line a moment before its sockets.
        ports = [
            port for port in (self.ports.client, self.ports.controller, self.ports.scram) if port is not None
        ]
        while self.running or not all(is_free(port) for port in ports):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _last_words(self) -> str:
        lines: list[str] = []
        for name in ("console.log", "broker.log"):
            try:
                lines += (self.folder / name).read_text("utf-8", "replace").splitlines()[-10:]
            except FileNotFoundError:
                continue  # it ended before it wrote any
        return "\n".join(lines) or f"nothing; look into {self.folder}"


def is_free(port: int) -> bool:
    """Whether nobody listens at a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as Kafka does: an old connection is no listener
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _command_line(pid: int) -> str:
    """The command line of a process; empty when there is none, or when it is dead and not yet reaped."""
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            return (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            return ""
    # A zombie's command is its name alone, so it does not match either.
    answer = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return answer.stdout


def _stands(pid: int) -> bool:
    """Whether no thread of a process runs any more. Where the system does not say, a moment passes instead."""
    if not Path("/proc/self/task").exists():
        time.sleep(0.1)
        return True
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            state = (thread / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue  # that thread ended
        if state not in "TtZX":
            return False
    return True
