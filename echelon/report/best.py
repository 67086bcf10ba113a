"""Which commit of a run is the best: one rule for the summary, the closing table and `echelon export --commit best`."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from echelon.report.data import EvaluationLine, ReportData


def best_evaluated(data: ReportData) -> tuple[int, float] | None:
    """The commit whose adapter had the lowest mean loss per token over all boundaries, and that loss.

    The earliest of equals. The evaluations of one commit grow while devices report, and the last one counts. A commit
    takes part if every boundary evaluated it with at least half of the tokens that it evaluated any commit with: fewer
    would compare different data. Genesis and the last commit, if nobody evaluated them during the run, have the
    whole validation splits' losses, which stand in the summary. A loss that is no finite number takes no part.

    Returns:
        None where no commit takes part.
    """
    last = {(one.commit, one.boundary): one for one in data.evaluations if _counts(one)}
    names = data.boundaries
    most = {
        name: max((one.eval_tokens for one in last.values() if one.boundary == name), default=0)
        for name in names
    }
    by_commit: dict[int, list[EvaluationLine]] = {}
    for (commit, name), one in last.items():
        if name in most:
            by_commit.setdefault(commit, []).append(one)
    means = _ends(data)
    for commit, of_commit in by_commit.items():
        enough = all(2 * one.eval_tokens >= most[one.boundary] for one in of_commit)
        if enough and len(of_commit) == len(names):
            means[commit] = _mean_loss(sorted(of_commit, key=lambda one: one.boundary))
    return min(means.items(), key=lambda found: (found[1], found[0])) if means else None


def _ends(data: ReportData) -> dict[int, float]:
    """Losses of genesis and of the last commit over all boundaries, as far as the summary has them."""
    if data.summary is None or data.summary.commits is None:
        return {}
    ends: dict[int, float] = {}
    for commit, losses in ((0, data.summary.base_loss), (data.summary.commits, data.summary.final_loss)):
        overall = losses.get("overall")
        if overall is not None and isfinite(overall):
            ends.setdefault(commit, overall)
    return ends


def _mean_loss(evaluations: Sequence[EvaluationLine]) -> float:
    """The mean loss per token of one commit; every boundary counts by its evaluated tokens."""
    total = sum((one.loss or 0.0) * one.eval_tokens for one in evaluations)
    return total / sum(one.eval_tokens for one in evaluations)


def _counts(one: EvaluationLine) -> bool:
    return one.loss is not None and isfinite(one.loss) and one.eval_tokens > 0
