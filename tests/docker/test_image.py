"""The image: what goes in, who runs it, and how docker asks whether it is well."""

from __future__ import annotations

import http.server
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.docker.composed import ROOT
from tests.docker.dockerfile import TEXT, Folder, folders, instructions, last_stage
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


def test_there_are_two_stages_and_the_last_holds_no_tools() -> None:
    stages = arguments("FROM")
    assert [stage.partition(" AS ")[2] for stage in stages] == ["build", "run"]
    assert not any(
        re.search(r"\b(pip|apt|apt-get|curl|wget) ", step) for step in arguments("RUN", LAST_STAGE)
    )


def test_the_base_is_pinned_to_a_version() -> None:
    (base,) = [found for found in arguments("ARG") if found.startswith("PYTHON_IMAGE=")]
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert all(stage.startswith("${PYTHON_IMAGE} ") for stage in arguments("FROM"))


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


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [
        word
        for step in arguments("COPY")
        if "--from=" not in step
        for word in shlex.split(step)[:-1]
    ]  # fmt: skip
    assert {"echelon", "topics", "constraints.txt", "docker/init.py", "docker/healthcheck.py"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path", ["tests", "runs", ".venv", ".git", ".kafka", "docker/run.yaml", "docs", "bench", "tools"]
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
