"""A user's own rules: they run where somebody decided so, in the version that genesis pins, and replay like ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from echelon.audit.findings import Code
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.errors import AuditError, ConfigError, EchelonError
from echelon.laws.rules import RuleRefused
from echelon.messages.manifest import RuleSlot
from echelon.wiring.plugins import allow, read_rule, rules_of
from tests.cli.commands import settings as small_settings
from tests.run.runs import Outcome, boundaries, federation, run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "rules.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAME = "trimmed:TrimmedMean"
PACE = """
from collections.abc import Mapping
from dataclasses import dataclass, replace
import hashlib

from echelon.messages.exchange import Pace

@dataclass(frozen=True)
class Slower:
    pace: Pace
    parameters: Mapping[str, int | str]
    seen: int = 0

    def observe(self, inputs):
        after = replace(self, seen=self.seen + len(inputs.merged))
        return after, Pace(steps=self.pace.steps + after.seen // self.parameters["every"], windows=WINDOWS, mu_ppm=0)

    def encode(self):
        return b"slower %d" % self.seen

    def decode(self, data):
        return replace(self, seen=int(data.removeprefix(b"slower ")))

    def digest(self):
        return hashlib.sha256(self.encode()).digest()
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the page's example in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trimmed.py").write_text(BLOCKS[0])
    header = "from collections.abc import Mapping\n\n\n"
    (tmp_path / "halving.py").write_text(header + BLOCKS[1])
    return tmp_path


def example(**changes: Any) -> dict[str, Any]:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    sync: dict[str, Any] = yaml.safe_load(block)["sync"]
    return {"sync": {"windows": 2, **sync}} | changes


def with_rule() -> Outcome:
    return run(federation(**example(boundaries=boundaries(3, 3, 3))))


# ---- the outer step ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_page_runs_learns_and_is_derived_again() -> None:
    outcome = with_rule()
    assert outcome.summary["audit"]["ok"], outcome.summary["audit"]
    assert outcome.summary["commits"] == 3
    assert outcome.drop > 0
    plain = run(federation(boundaries=boundaries(3, 3, 3), sync={"windows": 2}))
    assert outcome.adapter != plain.adapter
    terms = outcome.assembly.manifest.rule(RuleSlot.OUTER)
    assert terms is not None
    assert terms.name == NAME
    assert terms.arguments() == {"momentum_ppm": 500_000}
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    *_, last = replay(outcome.topics["exchange"], genesis=genesis, rules=allow([NAME]))
    assert np.array_equal(last.adapter, outcome.result.adapter)


@pytest.mark.slow
def test_nobody_derives_anything_with_code_that_nobody_allowed(workplace: Path) -> None:
    outcome = with_rule()
    topics = outcome.topics["exchange"]
    source = (workplace / "trimmed.py").read_text()

    def only_error(**arguments: Any) -> str:
        report = verify(topics, **arguments)
        errors = [found for found in report.findings if found.severity.value == "error"]
        assert [found.code for found in errors] == [Code.RULE]
        assert report.commits == []
        return errors[0].detail

    assert "was not allowed here" in only_error()
    assert "not derived again" in only_error(rules={})
    assert "was not allowed here" in only_error(rules=allow(["halving:Halving"]))
    assert verify(topics, rules=allow([NAME])).ok
    # One changed character: another program, which never runs.
    marker = workplace / "ran"
    (workplace / "trimmed.py").write_text(source + f"\nopen({str(marker)!r}, 'w')\n")
    assert "the run was started with" in only_error(rules=allow([NAME]))
    assert not marker.exists()
    with pytest.raises(AuditError, match="the run was started with"):
        list(replay(topics, rules=allow([NAME])))
    (workplace / "trimmed.py").write_text(source)
    assert verify(topics, rules=allow([NAME])).ok


@pytest.mark.slow
def test_the_controller_needs_the_version_that_genesis_pins(workplace: Path) -> None:
    """The manifest is made, then the file changes: no controller starts."""

    async def change(assembly: Any) -> None:
        path = workplace / "trimmed.py"
        path.write_text(path.read_text() + "\n# changed\n")
        with pytest.raises(RuleRefused, match="the run was started with"):
            await assembly.controller()
        path.write_text(BLOCKS[0])

    run(federation(**example()), change)


BAD = {
    "raises": ("raise ZeroDivisionError('no')", "failed: ZeroDivisionError: no"),
    "float64": ("return inputs.theta.astype(np.float64), inputs.state", "no float32"),
    "not finite": ("return np.full_like(inputs.theta, np.inf), inputs.state", "not finite"),
    "no pair": ("return inputs.theta", "no pair"),
    "other state": ("return inputs.theta, [np.zeros(3)]", "other shapes"),
    "writes": ("inputs.theta[0] = 1", "failed: ValueError"),
    "chance": (
        "return np.random.default_rng().random(inputs.theta.size, np.float32), inputs.state",
        "two results",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_a_rule_that_is_none_ends_the_run_and_says_so(what: str, workplace: Path) -> None:
    line, message = BAD[what]
    (workplace / "bad.py").write_text(
        "import numpy as np\n\n\nclass Bad:\n    def __init__(self, parameters):\n        pass\n\n"
        "    def initial(self, dim):\n        return [np.zeros(dim)]\n\n"
        f"    def step(self, inputs):\n        {line}\n"
    )
    with pytest.raises(EchelonError, match=re.escape(message)):
        run(federation(sync={"windows": 1, "outer": {"rule": "bad:Bad"}}))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import torch\n", "imports torch"),
        ("from trimmed import TrimmedMean\n", "imports trimmed"),
        ("from . import other\n", "which the digest of the file does not cover"),
        ("def broken(:\n", "is no Python source"),
    ],
)
def test_a_source_that_its_digest_would_not_cover_is_refused(
    source: str, message: str, workplace: Path
) -> None:
    (workplace / "mine.py").write_text(source)
    with pytest.raises(ConfigError, match=message):
        read_rule("mine:Rule")


def test_a_name_that_leads_nowhere_is_refused(workplace: Path) -> None:
    for name, message in (
        ("nothing.there:Rule", "no source file"),
        ("trimmed", "package.module:Class"),
        ("math:Rule", "no source file"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_rule(name)
    with pytest.raises(ConfigError, match="has no class Missing"):
        read_rule("trimmed:Missing").make()


def test_finding_a_rule_runs_nothing_and_leaves_nothing_behind(workplace: Path) -> None:
    """Not even the packages around it; and a loaded rule is no module that others could import."""
    package = workplace / "around" / "deep"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text(f"open({str(workplace / 'ran')!r}, 'w')\n")
    (package / "rule.py").write_text(BLOCKS[0])
    found = read_rule("around.deep.rule:TrimmedMean")
    assert found.make().__name__ == "TrimmedMean"
    assert not (workplace / "ran").exists()
    assert not any(name.startswith("around") for name in sys.modules)


# ---- staleness and pace ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_of_ones_own_stands_in_the_manifest_and_needs_no_code_later() -> None:
    rule = {"rule": "halving:Halving", "horizon": 3}
    outcome = run(
        federation(
            sync={"windows": 1, "staleness": rule},
            secure={"staleness": rule | {"parameters": {"least": 100}}},
        )
    )
    manifest = outcome.assembly.manifest
    assert manifest.exchange.staleness == (256, 128, 64, 32)
    assert manifest.secure.staleness == (256, 128, 100, 100)
    assert {terms.slot for terms in manifest.rules} == {RuleSlot.STALENESS_DELTAS, RuleSlot.STALENESS_UPDATES}
    assert outcome.summary["audit"]["ok"]
    assert verify(outcome.topics["exchange"]).ok  # without any rule
    assert rules_of(outcome.assembly.settings) == {}


@pytest.mark.slow
def test_a_pace_of_ones_own_decides_and_is_derived_again(workplace: Path) -> None:
    (workplace / "slower.py").write_text(PACE.replace("WINDOWS", "1"))
    outcome = run(
        federation(
            budget={"commits": 4},
            sync={"windows": 1, "pace_rule": "slower:Slower", "pace_parameters": {"every": 2}},
        )
    )
    topics = outcome.topics["exchange"]
    report = verify(topics, rules=allow(["slower:Slower"]))
    assert report.ok
    assert [facts.pace.steps for facts in report.commits] == [11, 12, 13, 14]
    assert [found.code for found in verify(topics).findings if found.severity.value == "error"] == [Code.RULE]


def test_a_pace_that_no_boundary_could_follow_is_refused(workplace: Path) -> None:
    (workplace / "slower.py").write_text(PACE.replace("WINDOWS", "20"))
    with pytest.raises(EchelonError, match=r"R must be in 1\.\."):
        run(
            federation(
                sync={"windows": 1, "pace_rule": "slower:Slower", "pace_parameters": {"every": 2}},
            )
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"sync": {"outer": {"parameters": {"a": 1}}}},
        {"sync": {"outer": {"rule": "no colon"}}},
        {"sync": {"outer": {"rule": NAME, "parameters": {"a": 0.5}}}},
        {"sync": {"staleness": {"parameters": {"a": 1}}}},
        {"secure": {"staleness": {"rule": "constants"}}},
    ],
)
def test_what_is_no_rule_is_no_setting(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        federation(**changes)


# ---- the command line --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_auditor_allows_a_rule_by_name(workplace: Path) -> None:
    fields = small_settings(boundaries=boundaries(3, 3, 3)) | example()
    (workplace / "run.yaml").write_text(yaml.safe_dump(fields))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}

    def echelon(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "echelon", *arguments],
            cwd=workplace, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    ran = echelon("run", "run.yaml", "--out", "out")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    alone = echelon("audit", "verify", "out", "--json")
    assert alone.returncode == 1
    found = json.loads(alone.stdout)
    assert {"rule", "adapter-file"} == {f["code"] for f in found["findings"] if f["severity"] == "error"}
    allowed = echelon("audit", "verify", "out", "--rule", NAME, "--json")
    assert allowed.returncode == 0, allowed.stdout
    digest = json.loads(allowed.stdout)["adapter_sha256"]
    assert echelon("audit", "replay", "out").returncode == 1
    replayed = echelon("audit", "replay", "out", "--rule", NAME)
    assert replayed.returncode == 0
    assert digest[:12] in replayed.stdout
    exported = echelon("export", "out", "--out", "adapter", "--rule", NAME)
    assert exported.returncode == 0, exported.stdout + exported.stderr
