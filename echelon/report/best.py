"""Which commit of a run is the best: one rule for the summary, the closing table and `echelon export --commit best`."""

from __future__ import annotations

from math import isfinite

from echelon.report.data import Evaluation, ReportData


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
    means: dict[int, float] = {}
    for commit in {commit for commit, _ in last}:
        of_commit = [last[commit, name] for name in names if (commit, name) in last]
        if len(of_commit) == len(names) and all(
            2 * one.eval_tokens >= most[one.boundary] for one in of_commit
        ):
            total = sum((one.loss or 0.0) * one.eval_tokens for one in of_commit)
            means[commit] = total / sum(one.eval_tokens for one in of_commit)
    if data.summary is not None and data.summary.commits is not None:
        for commit, loss in ((0, data.summary.base_loss), (data.summary.commits, data.summary.final_loss)):
            overall = loss.get("overall")
            if overall is not None and isfinite(overall):
                means.setdefault(commit, overall)
    return min(means.items(), key=lambda found: (found[1], found[0])) if means else None


def _counts(one: Evaluation) -> bool:
    return one.loss is not None and isfinite(one.loss) and one.eval_tokens > 0
