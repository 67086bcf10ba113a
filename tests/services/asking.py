"""Asking services over HTTP, and reading what they log."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
INFO = "echelon_service_info"


def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def port_of(state: Path) -> int:
    return int(json.loads((state / "http.json").read_text())["port"])


def scrape(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Every sample: by name, by labels, without those by which each says of whom it is."""
    status, text = ask(port, "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(text))
    (who,) = [sample.labels for family in families for sample in family.samples if sample.name == INFO]
    whose = {"run", "role"} | ({"boundary"} & who.keys())
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        for sample in family.samples:
            assert {name: sample.labels.get(name) for name in whose} == {name: who[name] for name in whose}
            labels = tuple(
                sorted((name, value) for name, value in sample.labels.items() if name not in whose)
            )
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def eventually(
    what: Callable[[], T], seconds: float = 300.0, every: Callable[[], object] = lambda: None
) -> T:
    """What the call returns once that is true; errors of a service that is not there yet are waited out."""
    end = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < end:
        every()
        try:
            last = what()
            if last:
                return last  # type: ignore[return-value]
        except (OSError, ValueError, AssertionError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds} s: {last}")


def lines(log: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log; anything else that was printed fails."""
    return [json.loads(line) for line in log.read_text().splitlines()]
