"""The programs of a Kubernetes cluster, built from their Go modules once and kept.

Nothing is fetched but modules, from where this machine's Go is told to take them, and Go compares each with its public
list of digests. etcd, containerd, runc and the network plugins are Debian's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.containers.engine import NoEngine

KUBERNETES = "v1.30.14"
OF_KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
OTHERS = {
    "kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@v2.1.0",
    "coredns": "github.com/coredns/coredns@v1.14.7",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.20.2",
}
"""What enforces policies, what answers for names, and what installs charts."""
STAGED = (
    "api", "apiextensions-apiserver", "apimachinery", "apiserver", "cli-runtime", "client-go", "cloud-provider",
    "cluster-bootstrap", "code-generator", "component-base", "component-helpers", "controller-manager", "cri-api",
    "csi-translation-lib", "dynamic-resource-allocation", "endpointslice", "kms", "kube-aggregator",
    "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet", "legacy-cloud-providers",
    "metrics", "mount-utils", "pod-security-admission", "sample-apiserver", "sample-cli-plugin",
    "sample-controller",
)  # fmt: skip
"""Modules that Kubernetes' own names by folders of its source."""
BUILD_SECONDS = 3600.0

PAUSE = """package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	<-end
}
"""
"""What holds a pod's namespaces: waits for its end. Containers of our pods have a first process of their own."""


def build(folder: Path) -> Path:
    """Build what is missing in `folder/bin`, and return that.

    Raises:
        NoEngine: there is no Go, or a module is not to be had; the message says which.
    """
    if shutil.which("go") is None:
        raise NoEngine("a cluster's programs are built with Go, and there is none on PATH")
    target = folder / "bin"
    target.mkdir(parents=True, exist_ok=True)
    release = KUBERNETES.removeprefix("v1.")
    source = folder / "source"
    source.mkdir(exist_ok=True)
    lines = ["module cluster", "go 1.22", f"require k8s.io/kubernetes {KUBERNETES}"]
    lines += [f"replace k8s.io/{name} => k8s.io/{name} v0.{release}" for name in STAGED]
    (source / "go.mod").write_text("\n".join(lines) + "\n")
    (source / "pause.go").write_text(PAUSE)
    at = "k8s.io/component-base/version.git"
    flags = f"-s -w -X {at}Version={KUBERNETES} -X {at}Major=1 -X {at}Minor={release.partition('.')[0]}"
    for name in OF_KUBERNETES:
        _go(
            source,
            target / name,
            "build",
            "-mod=mod",
            "-tags",
            "providerless",
            "-ldflags",
            flags,
            "-o",
            name,
            f"k8s.io/kubernetes/cmd/{name}",
        )
    _go(source, target / "pause", "build", "-ldflags", "-s -w", "-o", "pause", "pause.go")
    for name, module in OTHERS.items():
        _go(folder, target / name, "install", "-ldflags", "-s -w", module)
    return target


def _go(folder: Path, program: Path, *words: str) -> None:
    """Run Go where it leaves a program beside the others, unless that is there."""
    if program.exists():
        return
    words = tuple(str(program) if word == program.name and words[0] == "build" else word for word in words)
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOBIN": str(program.parent),
        "GOFLAGS": "-buildvcs=false",
    }
    done = subprocess.run(
        ["go", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )  # fmt: skip
    if done.returncode:
        raise NoEngine(f"{program.name} cannot be built here: {done.stderr.strip()[-1000:]}")
