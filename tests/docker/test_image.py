"""The image: what goes in, who runs it, and how docker asks whether it is well."""

from __future__ import annotations

import ast
import http.server
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker.composed import ROOT
from tests.docker.dockerfile import TEXT, Folder, folders, instructions, last_stage, scripts
from tests.docker.initialiser import healthcheck

INSTRUCTIONS = instructions()
LAST_STAGE = last_stage()


def arguments(name: str, stage: list[list[str]] = INSTRUCTIONS) -> list[str]:
    return [found[1] for found in stage if found[0] == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` out: the last line that fits it, or a folder above it, decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#") or pattern.startswith("**"):
            continue
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            out = not line.startswith("!")
    return out


def test_the_last_stage_holds_no_tools() -> None:
    stages = [stage.partition(" AS ")[2] for stage in arguments("FROM")]
    assert stages == ["build", "slim", "package", "run"]
    copied = [step.split()[0] for step in arguments("COPY", LAST_STAGE) if step.startswith("--from=")]
    assert copied == ["--from=slim", "--from=package"]  # a change of the code alone moves the second only
    assert not any(
        re.search(r"\b(pip|apt|apt-get|curl|wget) ", step) for step in arguments("RUN", LAST_STAGE)
    )


def test_the_base_is_pinned_to_a_version() -> None:
    (base,) = [found for found in arguments("ARG") if found.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    bases = {stage.partition(" AS ")[0] for stage in arguments("FROM")}
    assert bases == {"${PYTHON_IMAGE}", "build"}


def test_everything_that_is_installed_is_pinned() -> None:
    installs = [step for step in arguments("RUN") if "pip install" in step]
    assert len(installs) == 3
    for step in installs:
        assert "--constraint constraints.txt" in step
        assert "[admin]" in step or "[" not in step  # no tools of developers


def test_torch_is_the_cpu_build_unless_a_build_argument_says_otherwise() -> None:
    assert "TORCH_BUILD=cpu" in arguments("ARG")
    (step,) = [step for step in arguments("RUN") if step.rstrip().endswith(" torch")]
    assert "/${TORCH_BUILD}" in step


def test_nobody_in_the_container_is_root() -> None:
    assert arguments("USER", LAST_STAGE) == ["1000:1000"]
    order = [found[0] for found in LAST_STAGE]
    assert "RUN" not in order[order.index("USER") :]


def test_no_frontend_is_fetched_for_the_build() -> None:
    # A parser directive (`# syntax=`) makes the builder pull an image before it reads on.
    directives = []
    for line in TEXT.splitlines():
        found = re.fullmatch(r"#\s*([A-Za-z]+)\s*=\s*(\S+)\s*", line)
        if found is None:
            break
        directives.append(found[0])
    assert directives == []


def test_folders_that_are_mounted_over_are_there_with_an_owner() -> None:
    # Anybody may enter /etc/echelon, where `init` has its run file; what a service keeps is its own.
    assert folders() == {
        "/etc/echelon": Folder(1000, 1000, 0o755),
        "/var/lib/echelon": Folder(1000, 1000, 0o700),
    }


def test_a_step_that_may_make_folders_is_not_passed_over() -> None:
    last = "FROM base AS run\nRUN install --directory --mode 0711 /a /b \\\n    && {}\n"
    made = {path: Folder(0, 0, 0o711) for path in ("/a", "/b")}
    assert folders(last.format("install --directory /c")) == {**made, "/c": Folder(0, 0, 0o755)}
    for step in ("mkdir /c", "chmod 0700 /a", "chown 5 /a"):
        with pytest.raises(ValueError, match="say here which folders this step makes"):
            folders(last.format(step))


def test_the_service_gets_signals_itself() -> None:
    assert arguments("ENTRYPOINT") == ['["echelon"]']
    assert arguments("STOPSIGNAL") == ["SIGTERM"]
    (check,) = arguments("HEALTHCHECK")
    assert 'CMD ["python", "/opt/echelon/healthcheck.py", "livez"]' in check


def test_what_no_service_uses_stays_behind() -> None:
    (slimming,) = [step for step in arguments("RUN") if "pip uninstall --yes triton pip" in step]
    for word in ("-name tests", "-name include", '-name "*.a"'):
        assert word in slimming, word
    assert "torch_shm_manager" not in slimming  # torch looks for it when it is imported
    assert "PIP_NO_CACHE_DIR=1" in " ".join(arguments("ENV"))


@pytest.mark.parametrize("name", ["init", "healthcheck"])
def test_scripts_import_nothing_that_the_image_lacks(name: str) -> None:
    tree = ast.parse((ROOT / "docker" / f"{name}.py").read_text("utf-8"))
    wanted = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    wanted |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    placed = scripts()
    ours = {module for module in wanted if (ROOT / module.partition(".")[0]).is_dir()}
    for module in ours:
        in_wheel = module.partition(".")[0] == "echelon"
        assert in_wheel or f"/opt/echelon/{module.replace('.', '/')}.py" in placed, module
    assert ours if name == "init" else not ours


def test_the_rendering_of_brokers_properties_finds_its_templates_in_the_image(tmp_path: Path) -> None:
    for target, source in scripts().items():
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, place)
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel/echelon").symlink_to(ROOT / "echelon")  # the wheel has no tools
    code = "from tools.kafka.properties import templates, render; print(templates())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "opt/echelon", env={"PYTHONPATH": f".:{tmp_path}/wheel"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "opt/echelon/docker/kafka"), done.stderr


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [
        word
        for step in arguments("COPY")
        if "--from=" not in step
        for word in shlex.split(step)[:-1]
    ]  # fmt: skip
    assert {"echelon", "topics", "constraints.txt", *scripts().values()} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path",
    [
        "tests",
        "runs",
        ".venv",
        ".git",
        ".kafka",
        "docker/run.yaml",
        "docs",
        "bench",
        "tools",
        "tools/kafka/broker.py",
    ],
)
def test_nothing_else_reaches_the_builder(path: str) -> None:
    assert ignored(path)


def test_the_ignore_rule_in_this_test_can_say_no() -> None:
    assert not ignored("echelon/cli/app.py")
    assert ignored("echelonX")


# -------------------------------------------------------------------------------------------------------- health check


@contextmanager
def answering(status: int) -> Iterator[int]:
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(status if self.path in {"/livez", "/readyz"} else 404)
            self.end_headers()
            self.wfile.write(b'{"status": "x"}')

        def log_message(self, *_: object) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (500, 1), (404, 1)])
def test_the_health_check_passes_on_what_the_service_says(
    status: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status) as port:
        monkeypatch.setenv("ECHELON_HTTP__PORT", str(port))
        assert healthcheck.main(["livez"]) == code
        assert healthcheck.main(["readyz"]) == code
    assert str(status) in capsys.readouterr().out


def test_the_health_check_fails_where_nobody_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(200) as port:
        pass
    monkeypatch.setenv("ECHELON_HTTP__PORT", str(port))
    assert healthcheck.main(["livez"]) == 1
    monkeypatch.setenv("ECHELON_HTTP__PORT", "none")
    assert healthcheck.main(["livez"]) == 1
    assert healthcheck.main(["metrics"]) == 1
    assert "ECHELON_HTTP__PORT=none" in capsys.readouterr().err
