"""Every commit is evaluated on the same tokens, the last one too, so that they can be compared."""

from __future__ import annotations

from typing import Any

import pytest

from echelon.run.federation import Federation
from echelon.virtual_loop import run_virtual
from tests.run.runs import federation, recorder_for


@pytest.mark.slow
def test_the_last_commit_is_evaluated_like_the_others() -> None:
    settings = federation()
    recorder = recorder_for(settings)
    lines: list[dict[str, Any]] = []
    recorder.listeners.append(lines.append)
    result = run_virtual(Federation(settings, None, recorder).run)
    last = {line["boundary"]: line for line in lines if line["kind"] == "eval"}
    assert {line["commit"] for line in last.values()} == {result.summary["commits"]}
    for boundary, line in last.items():
        assert (
            abs(line["loss"] - result.summary["final_loss"][boundary]) < 1e-6
        )  # the quadratic has one slice
