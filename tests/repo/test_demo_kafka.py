"""scripts/demo_kafka.py: which run it takes, on which brokers, and with which embedded run it may be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from echelon.config.run import RunSettings, load
from echelon.provision.broker_map import load_brokers
from scripts.demo_kafka import Demo, arguments, chosen, in_real_time, unlike

ROOT = Path(__file__).resolve().parents[2]
ELSA = ROOT / "examples" / "elsa.yaml"


def elsa(*overrides: str) -> RunSettings:
    return load(ELSA, overrides)


def test_any_run_file_has_folders_of_its_own() -> None:
    given = Demo(arguments([str(ELSA), "--set", "budget.commits=2"]))
    assert (given.out, given.summary) == (Path("runs/kafka-elsa"), Path("runs/elsa/summary.json"))
    assert given.settings.budget.commits == 2
    assert (given.written.clock, given.settings.clock) == ("virtual", "real")
    assert arguments([]).run == Path("examples/quickstart.yaml")


def test_only_what_changes_the_outcome_keeps_runs_from_being_compared() -> None:
    assert unlike(in_real_time(elsa()), elsa()) == []
    times = ("window.deadline=90", "window.round_timeout=60", "compute.workers=1", "name=other")
    assert unlike(elsa(*times), elsa()) == []
    assert unlike(elsa("budget.commits=2"), elsa()) == ["budget"]
    assert unlike(elsa("seed=3", "budget.commits=2"), elsa()) == ["budget", "seed"]
    assert unlike(elsa("window.cohort=4"), elsa()) == ["window"]
    assert unlike(elsa("boundaries.0.split.perturbation=0"), elsa()) == ["boundaries"]


def test_runs_of_other_budgets_are_not_compared_and_those_of_one_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = tmp_path / "embedded" / "summary.json"
    embedded.parent.mkdir()
    losses = {"final_loss": {"overall": 2.0}}
    embedded.write_text('{"final_loss": {"overall": 1.0}}')
    config = yaml.safe_load(ELSA.read_text())
    (embedded.parent / "config.yaml").write_text(yaml.safe_dump(config))

    def faults(*more: str) -> list[str]:
        return Demo(arguments([str(ELSA), "--compare", str(embedded), *more])).held_against(losses)

    assert faults("--set", "budget.commits=2") == []
    assert "other settings of budget" in capsys.readouterr().out
    (fault,) = faults()
    assert "more than 2% apart" in fault
    embedded.write_text('{"final_loss": {"overall": 1.99}}')
    assert faults() == []
    embedded.unlink()
    assert faults() == []
    assert "to compare with" in capsys.readouterr().out


def test_brokers_of_other_boundaries_are_left_out(tmp_path: Path) -> None:
    urls = {name: {"url": f"kafka://localhost:{port}"} for port, name in enumerate(("x", "a", "b", "c"), 1)}
    path = tmp_path / "brokers.yaml"
    path.write_text(yaml.safe_dump({"exchange": urls.pop("x"), "boundaries": urls}))
    found = chosen(load_brokers(path), ["a", "c"])
    assert list(found.entries) == ["exchange", "a", "c"]
