"""More slots than partitions of `inbox`: devices pass over what is sealed to others, and nothing changes."""

from __future__ import annotations

import pytest

from echelon import topics
from echelon.messages import handshake
from echelon.run.federation import Federation
from echelon.virtual_loop import run_virtual
from tests.run.runs import federation, recorder_for


@pytest.mark.parametrize("most", [1, 3])
def test_devices_that_share_a_partition_make_the_same_commits(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def adapter() -> tuple[int, float, dict[str, int]]:
        settings = federation()
        recorder = recorder_for(settings)
        void: dict[str, int] = {}

        def look(line: dict[str, object]) -> None:
            if line["kind"] == "window" and line["outcome"] != "closed":
                void[str(line["boundary"])] = void.get(str(line["boundary"]), 0) + 1

        recorder.listeners.append(look)
        summary = run_virtual(Federation(settings, None, recorder).run).summary
        return summary["commits"], summary["final_loss"]["overall"], void

    alone = adapter()
    monkeypatch.setattr(handshake, "INBOXES", most)
    monkeypatch.setattr(topics, "INBOXES", most)
    assert topics.load_catalogue().boundary_topics(4)["inbox"] == most
    assert adapter() == alone
    assert alone[0] == 3
    assert alone[2] == {}
