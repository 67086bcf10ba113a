"""Runs that Python starts, plainly and on a loop, and runs that it follows from outside."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import echelon
from echelon.bus import open_bus, sqlite_url
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.errors import ConfigError, EchelonError
from echelon.run.tracking.scalars import scalars
from tests.cli.commands import settings, write


def small(folder: Path, **changes: Any) -> echelon.Run:
    return echelon.Run.from_yaml(write(folder), out=folder / "out", **changes)


@pytest.mark.slow
def test_a_run_from_a_file_with_changes_gives_its_result(tmp_path: Path) -> None:
    run = small(tmp_path, budget={"commits": 2}, seed=7)
    assert run.settings.budget.commits == 2
    assert run.settings.seed == 7
    assert run.settings.learner.dim == 16, "a map changes what it names, and leaves the rest"
    result = run.result()
    assert result.ok
    assert result.summary.commits == 2
    assert result.adapter == tmp_path / "out" / "adapter"
    assert result.weights.shape == (16,)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["commits"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
    assert "verified" in str(result)
    assert "<td>verified</td>" in result._repr_html_()


@pytest.mark.slow
def test_settings_may_be_objects(tmp_path: Path) -> None:
    run = echelon.Run.from_settings(settings(), out=tmp_path / "out")
    assert run.result().summary.name == "small"


@pytest.mark.slow
def test_callbacks_and_own_metrics(tmp_path: Path) -> None:
    windows: list[str] = []
    commits: list[int] = []
    run = small(tmp_path)
    run.on_window = lambda line: windows.append(line.boundary)
    run.on_commit = lambda line: commits.append(line.commit)
    run.metrics = {"norm": lambda result: float((result.weights**2).sum() ** 0.5)}
    result = run.result()
    assert commits == [1, 2, 3]
    assert set(windows) == {"a", "b"}
    assert result.metrics["norm"] > 0
    assert "norm" in str(result)


@pytest.mark.slow
def test_an_own_metric_stands_wherever_the_runs_figures_do(tmp_path: Path) -> None:
    run = small(tmp_path)
    run.metrics = {"<largest>": lambda result: abs(result.weights).max()}
    result = run.result()
    value = result.metrics["<largest>"]
    assert value == float(abs(result.weights).max())
    assert result.summary.metrics == json.loads((run.folder / "summary.json").read_text())["metrics"]
    assert result.summary.metrics == {"<largest>": value}
    (told,) = [event for event in run.events() if event.kind == "metric"]
    assert (told.name, told.value, told.commit) == ("<largest>", value, 3)
    written = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["value"] for line in written if line["kind"] == "metric"] == [value]
    assert ("metric/<largest>", value, 3) in list(scalars(written[-1], 0))
    page = (run.folder / "report.html").read_text()
    assert "&lt;largest&gt;" in page
    assert "<largest>" not in page


@pytest.mark.slow
@pytest.mark.parametrize("broken", [lambda _: 1 / 0, lambda _: float("nan"), lambda _: "much"])
def test_a_metric_that_fails_is_named_and_the_run_and_the_others_are_there(
    tmp_path: Path, broken: Any
) -> None:
    run = small(tmp_path)
    run.metrics = {"good": lambda result: result.summary.commits, "bad": broken, "late": lambda _: 2.0}
    with pytest.raises(EchelonError, match=r"is finished.*'bad'.*RunResult.read\(.*out"):
        run.result()
    assert echelon.RunResult.read(run.folder).metrics == {"good": 3.0, "late": 2.0}
    assert json.loads((run.folder / "summary.json").read_text())["metrics"] == {"good": 3.0, "late": 2.0}
    assert (run.folder / "report.html").is_file()


@pytest.mark.slow
def test_a_result_read_from_the_folder_is_the_one_that_the_run_gave(tmp_path: Path) -> None:
    given = small(tmp_path).result()
    read = echelon.RunResult.read(tmp_path / "out")
    assert read.audit.findings == given.audit.findings == []
    assert (read.weights == given.weights).all()
    assert (read.summary, read.model, read.adapter) == (given.summary, given.model, given.adapter)


@pytest.mark.slow
def test_a_result_read_from_a_folder_that_was_changed_says_so(tmp_path: Path) -> None:
    small(tmp_path).result()
    weights = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    *good, last = weights.read_bytes()
    weights.write_bytes(bytes([*good, last ^ 1]))
    read = echelon.RunResult.read(tmp_path / "out")
    assert not read.ok
    assert "adapter" in str(read.audit.findings[0])
    assert "NOT VERIFIED" in str(read)


@pytest.mark.slow
def test_no_result_is_read_where_no_run_has_finished(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        echelon.RunResult.read(tmp_path / "nowhere")
    run = small(tmp_path, budget={"commits": 200})
    run.on_commit = lambda _line: run.stop()
    with pytest.raises(EchelonError, match="was stopped"):
        run.result()
    with pytest.raises(ConfigError, match=r"no finished run is there; go on with it by echelon\.Run\.resume"):
        echelon.RunResult.read(run.folder)


@pytest.mark.slow
def test_an_error_of_a_callback_ends_the_run_and_comes_out_of_the_result(tmp_path: Path) -> None:
    run = small(tmp_path)

    def fail(_line: object) -> None:
        raise ZeroDivisionError("in the callback")

    run.on_commit = fail
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        run.result()


@pytest.mark.slow
async def test_on_a_running_loop_as_in_a_notebook(tmp_path: Path) -> None:
    run = small(tmp_path).start()
    kinds = [event.kind async for event in run.events()]
    assert kinds.count("commit") == 3
    assert {"window", "commit", "eval"} >= set(kinds) >= {"window", "commit"}
    result = await run
    assert result.ok
    assert [event.kind for event in run.events()] == kinds, "whoever comes late sees all of it"


@pytest.mark.slow
async def test_several_follow_one_run(tmp_path: Path) -> None:
    run = small(tmp_path).start()

    async def count() -> int:
        return len([event async for event in run.events()])

    first, second = await asyncio.gather(count(), count())
    assert first == second > 3


@pytest.mark.slow
def test_show_prints_words_plain_and_in_colour(tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=(tmp_path / "shown").open("w"))
    result = small(tmp_path).show(console)
    text = console.export_text()
    assert "commit 3: merged" in text
    assert result.ok


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    run = small(tmp_path)
    run.on_commit = lambda line: run.stop() if line.commit == 1 else None
    with pytest.raises(EchelonError, match=r"go on with Run\.resume"):
        run.result()
    rest = echelon.Run.resume(tmp_path / "out")
    assert rest.result().summary.commits == 3
    with pytest.raises(ConfigError, match="started before"):
        rest.start()


@pytest.mark.slow
def test_a_warm_start(tmp_path: Path) -> None:
    first = small(tmp_path).result()
    (tmp_path / "second").mkdir()
    second = small(tmp_path / "second")
    second.start_from = first.folder
    assert second.result().audit.parent is not None
    assert second.result().summary.base_loss == first.summary.final_loss


def test_wrong_settings_are_said_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budget"):
        small(tmp_path, budget={"commmits": 2})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("with_loop", [True, False])
def test_a_deployed_run_is_followed_to_its_close(tmp_path: Path, with_loop: bool) -> None:
    result = small(tmp_path, sync={"report_loss": True}).result()
    attached = echelon.attach(sqlite_url(tmp_path / "out" / "brokers" / "exchange.sqlite"))

    async def collect() -> list[Any]:
        return [happening async for happening in attached]

    found: list[Any] = asyncio.run(collect()) if with_loop else list(attached)
    assert isinstance(found[0], echelon.RunStarted)
    assert found[0].genesis_sha256 == result.summary.genesis_sha256
    assert [one.commit for one in found if isinstance(one, echelon.CommitMade)] == [1, 2, 3]
    crossed = [one for one in found if isinstance(one, echelon.DeltaCrossed)]
    assert {one.boundary for one in crossed} == {"a", "b"}
    assert all(one.loss is not None and one.tokens > 0 for one in crossed)
    last = found[-1]
    assert isinstance(last, echelon.RunClosed)
    assert (last.reason, last.adapter_sha256) == ("commits", result.summary.adapter_sha256)


@pytest.mark.slow
def test_a_brokers_file_names_the_exchange(tmp_path: Path) -> None:
    small(tmp_path).result()
    url = sqlite_url(tmp_path / "out" / "brokers" / "exchange.sqlite")
    (tmp_path / "broker.yaml").write_text(yaml.safe_dump({"url": url}))
    assert isinstance(next(iter(echelon.attach(tmp_path / "broker.yaml"))), echelon.RunStarted)


@pytest.mark.slow
def test_following_goes_on_when_the_connection_is_lost_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path).result()

    async def open_faulty(url: str, **options: Any) -> FaultyBus:
        return FaultyBus(await open_bus(url, **options), FaultPlan(lose_read=0.6, seed=3))

    monkeypatch.setattr("echelon.api.exchange.open_bus", open_faulty)
    found = list(echelon.attach(sqlite_url(tmp_path / "out" / "brokers" / "exchange.sqlite")))
    assert [one.commit for one in found if isinstance(one, echelon.CommitMade)] == [1, 2, 3]
    assert isinstance(found[-1], echelon.RunClosed)


def test_who_stops_following_stops_the_reading(tmp_path: Path) -> None:
    run = small(tmp_path)
    run.on_commit = lambda _line: run.stop()
    with pytest.raises(EchelonError, match="stopped"):
        run.result()
    happenings = iter(echelon.attach(sqlite_url(tmp_path / "out" / "brokers" / "exchange.sqlite")))
    assert isinstance(next(happenings), echelon.RunStarted)
    (reading,) = [one for one in threading.enumerate() if one.name == "echelon attached"]
    happenings.close()
    reading.join(100)
    assert not reading.is_alive(), "the run has no close, so it would be followed for ever"


def test_importing_the_package_is_light() -> None:
    heavy = "torch", "numpy", "scipy"
    code = f"import sys, echelon.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(echelon, name) is not None for name in echelon.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Ruun'"):
        _ = echelon.Ruun  # type: ignore[attr-defined]


def test_a_shipped_base_has_a_folder() -> None:
    assert (Path(echelon.base_folder("echelon:tiny")) / "config.json").is_file()
    assert echelon.base_folder("org/base") == "org/base"


@pytest.mark.slow
@pytest.mark.timeout(900)  # several runs
def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block.partition("\n```")[0] for block in text.split("```python\n")[1:]]
    assert len(blocks) >= 4
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        code = compile(block, "docs/python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        found = eval(code, names)
        if inspect.iscoroutine(found):
            asyncio.run(found)
