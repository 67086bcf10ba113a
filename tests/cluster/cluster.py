"""A Kubernetes cluster of one node, in a network namespace of its own: real API server, scheduler, kubelet, policies.

Everything of it is in one folder, `ECHELON_CLUSTER` or `~/.cache/echelon/cluster`; its programs stay there from one
night to the next. Pods are routed and not bridged, so that policies hold among pods of one node as well. Nothing leads
out of the namespace but one link, at whose other end a listener may stand for the world.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster import binaries
from tests.containers.engine import Engine, NoEngine
from tests.containers.stack import eventually

NETWORK = "echelon-cluster"
"""The name of the network namespace; `nsenter --net=/run/netns/NAME` is inside."""
NODE, NODE_ADDRESS, WORLD_ADDRESS = "node", "10.250.0.1", "10.250.0.2"
PODS, SERVICES, NAMES = "10.244.0.0/16", "10.96.0.0/16", "10.96.0.10"
API = f"https://{NODE_ADDRESS}:6443"
PAUSE_IMAGE, NAMES_IMAGE = "docker.io/stand-in/pause:1", "docker.io/stand-in/coredns:1"
CLAIMS = 24
"""Volumes that are there to be claimed."""
START_SECONDS = 300.0
STOP_SECONDS = 30.0
PLUGINS = Path("/usr/lib/cni")
TOOLS = {
    "kubectl": "kubernetes-client", "ip": "iproute2", "nsenter": "util-linux", "etcd": "etcd-server",
    "containerd": "containerd", "ctr": "containerd",
    "runc": "runc", "iptables": "iptables", "ipset": "ipset", "conntrack": "conntrack", "mount": "mount",
}  # fmt: skip
"""What must be on PATH, and Debian's package for it."""


def place() -> Path:
    """The folder of the cluster."""
    if chosen := os.environ.get("ECHELON_CLUSTER"):
        return Path(chosen).expanduser().absolute()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "echelon" / "cluster"
    )


class Cluster:
    """One cluster.

    Args:
        folder: of everything that it writes.
        engine: of docker, from which images come.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        if os.geteuid() != 0:
            raise NoEngine("only root may start a cluster")
        missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
        if not (PLUGINS / "ptp").exists():
            missing.append("containernetworking-plugins")
        if missing:
            raise NoEngine(
                f"a cluster needs programs that are missing (Debian: apt install {' '.join(missing)})"
            )
        self.folder, self.engine = folder, engine
        self.programs = binaries.build(folder)
        self.state = folder / "state"
        self.socket = self.state / "containerd.sock"
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []

    # ---- start and stop --------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, and wait until the node is ready and names are answered."""
        self.stop()
        self.state.mkdir(parents=True)
        (self.state / "logs").mkdir()
        self._groups()
        self._network()
        token = secrets.token_hex(16)
        (self.state / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self.state / "accounts.pem").write_bytes(pem)
        self._configuration(token)
        state, programs = self.state, self.programs
        self._run("etcd", "etcd", "--data-dir", f"{state}/etcd", "--unsafe-no-fsync")
        self._run(
            "apiserver", f"{programs}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={NODE_ADDRESS}", f"--service-cluster-ip-range={SERVICES}", f"--cert-dir={state}/api",
            f"--token-auth-file={state}/tokens.csv", "--authorization-mode=RBAC", "--allow-privileged=true",
            f"--service-account-issuer={API}", f"--service-account-signing-key-file={state}/accounts.pem",
            f"--service-account-key-file={state}/accounts.pem", "--kubelet-preferred-address-types=InternalIP",
        )  # fmt: skip
        self._run("containerd", "containerd", "--config", f"{state}/containerd.toml")
        eventually(lambda: self._answers("get", "--raw", "/readyz"), START_SECONDS, "the API server is ready")
        common = f"--kubeconfig={self.configuration}"
        self._run(
            "manager", f"{programs}/kube-controller-manager", common, "--leader-elect=false",
            f"--service-account-private-key-file={state}/accounts.pem", f"--root-ca-file={state}/api/apiserver.crt",
            "--allocate-node-cidrs", f"--cluster-cidr={PODS}", f"--service-cluster-ip-range={SERVICES}",
        )  # fmt: skip
        self._run("scheduler", f"{programs}/kube-scheduler", common, "--leader-elect=false")
        eventually(self._serves_images, START_SECONDS, "containerd answers")
        for image, program in ((PAUSE_IMAGE, "pause"), (NAMES_IMAGE, "coredns")):
            self._small_image(image, program)
        self._run(
            "kubelet", f"{programs}/kubelet", common, f"--config={state}/kubelet.yaml", f"--root-dir={state}/kubelet",
            f"--hostname-override={NODE}", f"--node-ip={NODE_ADDRESS}", f"--cert-dir={state}/kubelet-certificates",
        )  # fmt: skip
        self._run(
            "proxy", f"{programs}/kube-proxy", common, "--proxy-mode=iptables", f"--cluster-cidr={PODS}",
            f"--hostname-override={NODE}", "--conntrack-max-per-core=0",
        )  # fmt: skip
        ready = ("wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=1s")
        eventually(lambda: self._answers(*ready), START_SECONDS, "the node is ready")
        self._run(
            "policies", f"{programs}/kube-router", common, "--run-router=false", "--run-service-proxy=false",
            "--run-firewall=true", f"--hostname-override={NODE}", f"--service-cluster-ip-range={SERVICES}",
        )  # fmt: skip
        self.apply(*self._volumes(), *_answering_names())
        names = (
            "-n",
            "kube-system",
            "wait",
            "--for=condition=Ready",
            "pod",
            "-l",
            "k8s-app=kube-dns",
            "--timeout=1s",
        )
        eventually(lambda: self._answers(*names), START_SECONDS, "names are answered")

    def stop(self) -> None:
        """End every process and remove all but the programs; nothing where nothing is."""
        for _, process in reversed(self._processes):
            process.kill()  # nothing of its state is kept, and an API server would wait for those that watch it
        for name, process in reversed(self._processes):
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{name} does not end: pid {process.pid}") from None
        self._processes.clear()
        for (
            pid
        ) in self._inside():  # pods' own processes, and what holds them, of this or of an earlier cluster
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self._inside(), STOP_SECONDS, "every process has ended")
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (target := line.split()[1]).startswith(f"{self.state}/"):
                subprocess.run(["umount", target], check=True, timeout=60)
        for name in (NETWORK, f"{NETWORK}-world"):
            if Path(f"/run/netns/{name}").exists():
                subprocess.run(["ip", "netns", "delete", name], check=True, timeout=60)
        if self.state.exists():
            shutil.rmtree(self.state)

    def _inside(self) -> list[int]:
        """Processes in which this cluster's folder is named: its programs, and what holds containers."""
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and int(path.name) != os.getpid():
                try:
                    group = (path / "cgroup").read_text()
                    words = (path / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if f"/{NETWORK}/" in group or f"{self.state}/".encode() in words:
                    found.append(int(path.name))
        return found

    def _run(self, name: str, *command: str) -> None:
        """Start a program inside the network namespace; its log is `state/logs/NAME.log`."""
        with (self.state / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.inside(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append((name, process))

    @staticmethod
    def _groups() -> None:
        """The control group in which all pods are, in every hierarchy of the machine: by it they are found again."""
        places = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for _, target, kind, *_ in places:
            if kind in ("cgroup", "cgroup2"):
                (Path(target) / NETWORK).mkdir(exist_ok=True)

    def _network(self) -> None:
        """The namespace, and its one link to the world."""
        inside = self.inside
        for command in (
            ["ip", "netns", "add", NETWORK],
            inside("ip", "link", "set", "lo", "up"),
            ["ip", "netns", "add", f"{NETWORK}-world"],
            inside(
                "ip",
                "link",
                "add",
                "node0",
                "type",
                "veth",
                "peer",
                "name",
                "world0",
                "netns",
                f"{NETWORK}-world",
            ),
            inside("ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", "node0"),
            inside("ip", "link", "set", "node0", "up"),
            inside("ip", "route", "add", "default", "via", WORLD_ADDRESS),
            self.outside("ip", "address", "add", f"{WORLD_ADDRESS}/24", "dev", "world0"),
            self.outside("ip", "link", "set", "world0", "up"),
            self.outside("ip", "link", "set", "lo", "up"),
            self.outside("ip", "route", "add", "default", "via", NODE_ADDRESS),
            inside("sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1"),
        ):
            subprocess.run(command, check=True, timeout=60)

    def inside(self, *command: str) -> list[str]:
        """A command in the network of the node."""
        return ["nsenter", f"--net=/run/netns/{NETWORK}", *command]

    def outside(self, *command: str) -> list[str]:
        """A command at the other end of the one link that leads out."""
        return ["nsenter", f"--net=/run/netns/{NETWORK}-world", *command]

    # ---- what programs read ------------------------------------------------------------------------

    @property
    def configuration(self) -> Path:
        """What kubectl, helm and every program reads."""
        return self.state / "kubeconfig.yaml"

    def _configuration(self, token: str) -> None:
        state = self.state
        kubeconfig = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": {"server": API, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "admin"}}],
        }  # fmt: skip
        self.configuration.write_text(yaml.safe_dump(kubeconfig))
        (state / "resolv.conf").write_text("")
        kubelet = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"}, "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{NETWORK}",
            "failSwapOn": False,
            "clusterDNS": [NAMES], "clusterDomain": "cluster.local", "resolvConf": f"{state}/resolv.conf",
            "containerRuntimeEndpoint": f"unix://{self.socket}", "podLogsDir": f"{state}/pods",
            "volumePluginDir": f"{state}/plugins", "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        }  # fmt: skip
        (state / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))
        network = {
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [{
                "type": "ptp", "ipMasq": False,
                "ipam": {
                    "type": "host-local", "dataDir": f"{state}/addresses", "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": PODS.replace("/16", "/24")}]],
                },
            }],
        }  # fmt: skip
        (state / "cni").mkdir()
        (state / "cni" / "pods.conflist").write_text(json.dumps(network))
        (state / "containerd.toml").write_text(
            f'version = 2\nroot = "{state}/containerd"\nstate = "{state}/containerd-run"\n'
            f'[grpc]\naddress = "{self.socket}"\n'
            '[plugins."io.containerd.grpc.v1.cri"]\n'
            f'sandbox_image = "{PAUSE_IMAGE}"\n'
            "restrict_oom_score_adj = true\n"  # where root may not lower it
            f'[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "{PLUGINS}"\nconf_dir = "{state}/cni"\n'
        )

    def _volumes(self) -> list[dict[str, Any]]:
        """Folders of the node that may be claimed: of a kind that is given to a pod's group when it is mounted."""
        here = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}]
        found = []
        for number in range(CLAIMS):
            folder = self.state / "volumes" / str(number)
            folder.mkdir(parents=True)
            found.append({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"volume-{number}"},
                "spec": {
                    "capacity": {"storage": "20Gi"}, "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain", "local": {"path": str(folder)},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": here}},
                },
            })  # fmt: skip
        return found

    # ---- images ------------------------------------------------------------------------------------

    def _containers(self, *words: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *words]

    def _serves_images(self) -> bool:
        done = subprocess.run(self._containers("version"), capture_output=True, timeout=30, check=False)
        return done.returncode == 0

    def take(self, image: str) -> None:
        """Take an image over from docker's engine."""
        with subprocess.Popen(
            ["docker", "save", image], stdout=subprocess.PIPE, env=dict(self.engine.environment)
        ) as saving:
            subprocess.run(
                self._containers("images", "import", "-"), stdin=saving.stdout, stdout=subprocess.DEVNULL,
                timeout=1800, check=True,
            )  # fmt: skip
        assert saving.returncode == 0, image

    def _small_image(self, image: str, program: str) -> None:
        """An image of one program and nothing else."""
        context = self.state / f"image-{program}"
        context.mkdir()
        shutil.copy(self.programs / program, context / "program")
        (context / "Dockerfile").write_text('FROM scratch\nCOPY program /program\nENTRYPOINT ["/program"]\n')
        self.engine.docker(
            "build", "--quiet", "--tag", image.removeprefix("docker.io/"), str(context), timeout=300
        )
        self.take(image.removeprefix("docker.io/"))

    # ---- clients -----------------------------------------------------------------------------------

    def environment(self) -> Mapping[str, str]:
        """Of clients: helm on PATH, and the cluster's address."""
        return {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(self.configuration),
        }

    def client(
        self,
        command: Sequence[str],
        *,
        timeout: float = 300,
        folder: Path | None = None,
        told: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client inside the cluster's network, whatever becomes of it."""
        return subprocess.run(
            self.inside(*command), capture_output=True, text=True, timeout=timeout, cwd=folder, input=told, check=False,
            env=self.environment(),
        )  # fmt: skip

    def _answers(self, *words: str) -> bool:
        return self.client(["kubectl", *words], timeout=30).returncode == 0

    def kubectl(self, *words: str, timeout: float = 300, told: str | None = None) -> str:
        """What `kubectl WORDS` prints.

        Raises:
            AssertionError: it failed; the message has what it said.
        """
        done = self.client(["kubectl", *words], timeout=timeout, told=told)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """Make objects, or change them."""
        self.kubectl("apply", "-f", "-", told=yaml.safe_dump_all(objects))

    def get(self, *words: str) -> Any:
        """`kubectl get WORDS`, read."""
        return json.loads(self.kubectl("get", *words, "--output", "json"))

    def kill(self, pod: Mapping[str, Any]) -> None:
        """End the first process of a pod's one container as the kernel does when memory is short."""
        (status,) = pod["status"]["containerStatuses"]
        container = status["containerID"].removeprefix("containerd://")
        command = self._containers("tasks", "kill", "--signal", "SIGKILL", container)
        subprocess.run(command, check=True, timeout=60)

    def execute(self, namespace: str, pod: str, *command: str, timeout: float = 60) -> tuple[int, str]:
        """Exit status and output of a command in a pod."""
        done = self.client(["kubectl", "-n", namespace, "exec", pod, "--", *command], timeout=timeout)
        return done.returncode, done.stdout + done.stderr


def wait_for(check: Callable[[], object], what: str, seconds: float = 900.0) -> float:
    """Wait until something holds, as long as it may take on a machine with other work; the seconds that it took."""
    return eventually(check, seconds, what)


def _answering_names() -> list[dict[str, Any]]:
    """CoreDNS as clusters run it: in kube-system, with the label by which policies know it."""
    labels = {"k8s-app": "kube-dns"}
    subject = {"kind": "ServiceAccount", "name": "coredns", "namespace": "kube-system"}
    corefile = """.:53 {
    errors
    ready
    kubernetes cluster.local {
        pods verified
    }
    reload
}
"""
    reads = [
        {
            "apiGroups": [""],
            "resources": ["endpoints", "services", "pods", "namespaces"],
            "verbs": ["list", "watch"],
        },
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    meta = {"name": "coredns", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"},
            "rules": reads,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
            "subjects": [subject],
        },
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": 1, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": "coredns", "dnsPolicy": "Default",
                        "containers": [{
                            "name": "coredns", "image": NAMES_IMAGE, "imagePullPolicy": "Never",
                            "args": ["-conf", "/etc/coredns/Corefile"],
                            "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns"}],
                            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}},
                        }],
                        "volumes": [{"name": "configuration", "configMap": {"name": "coredns"}}],
                    },
                },
            },
        },
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": NAMES, "selector": labels,
                "ports": [
                    {"name": name.lower(), "port": 53, "protocol": name} for name in ("UDP", "TCP")
                ],
            },
        },
    ]  # fmt: skip
