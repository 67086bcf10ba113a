"""What a line of `metrics.jsonl` gives to trackers: scalars of boundaries and of commits, never of one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def scalars(line: Mapping[str, Any], commit: int) -> Iterator[tuple[str, float, int]]:
    """(tag, value, step) of every scalar of a metric line.

    Args:
        line: of `metrics.jsonl`.
        commit: the newest commit, the step of what crosses.
    """
    match line["kind"]:
        case "eval":
            yield f"validation_loss/{line['boundary']}", line["loss"], line["commit"]
            for name, metric in line.get("metrics", {}).items():
                yield f"metric/{name}/{line['boundary']}", metric["mean"], line["commit"]
        case "window" if line["outcome"] == "closed":
            boundary, step = line["boundary"], line["window"]
            if line.get("train_loss") is not None:
                yield f"train_loss/{boundary}", line["train_loss"], step
            yield f"update_norm/{boundary}", line["update_norm"], step
            yield f"window_tokens/{boundary}", line["tokens"], step
            yield f"included/{boundary}", line["included"], step
            ages = line["staleness"]
            yield f"staleness/{boundary}", sum(ages) / max(1, len(ages)), step
        case "commit":
            step = line["commit"]
            yield "tokens", line["tokens"], step
            for name, norm in line["delta_norm"].items():
                if norm is not None:
                    yield f"delta_norm/{name}", norm, step
            for merged in line["merged"]:
                yield f"delta_staleness/{merged['boundary']}", merged["staleness"], step
        case "metric":
            yield f"metric/{line['name']}", line["value"], line["commit"]
        case "bytes":
            yield f"bytes_{line['direction']}/{line['boundary']}/{line['type']}", line["bytes"], commit
