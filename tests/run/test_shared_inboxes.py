"""More slots than partitions of `inbox`: devices pass over what is sealed to others, and nothing changes."""

from __future__ import annotations

import pytest

from echelon import topics
from echelon.messages import handshake
from echelon.run.federation import Federation
from echelon.virtual_loop import run_virtual
from tests.run.runs import federation, recorder_for


@pytest.mark.slow
@pytest.mark.parametrize("most", [2])
def test_devices_that_share_a_partition_make_the_same_commits(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapter() -> tuple[int, float, dict[str, int]]:
        settings = federation(budget={"commits": 1})
        recorder = recorder_for(settings)
        void: dict[str, int] = {}

        def look(line: dict[str, object]) -> None:
            if line["kind"] == "window" and line["outcome"] != "closed":
                void[str(line["boundary"])] = void.get(str(line["boundary"]), 0) + 1

        recorder.listeners.append(look)
        summary = run_virtual(Federation(settings, None, recorder).run).summary
        return summary["commits"], summary["final_loss"]["overall"], void

    alone = adapter()
    monkeypatch.setattr(handshake, "INBOXES", 2)
    monkeypatch.setattr(topics, "INBOXES", 2)
    assert topics.load_catalogue().boundary_topics(4)["inbox"] == 2
    assert adapter() == alone
    assert alone[0] == 1
    assert alone[2] == {}
