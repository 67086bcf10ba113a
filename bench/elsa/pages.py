"""docs/elsa-tasks.md: the runs on real text, and behind them those of the small models."""

from __future__ import annotations

from pathlib import Path

from bench.elsa import plan, real_plan
from bench.elsa.real_tables import sections
from bench.elsa.tables import page
from bench.harness.results import Results, read_json

REAL, SMALL = real_plan.TIERS["real"], plan.TIERS["full"]


def whole_page(folder: Path) -> str:
    """The page, from the lines in a folder of results; without lines of real text that of the small models alone.

    Raises:
        ConfigError: lines are there, and what they go with is not.
    """
    small = page(SMALL, Results(folder / f"{SMALL.name}.jsonl").lines, folder)
    lines = Results(folder / f"{REAL.name}.jsonl").lines
    if not lines:
        return small
    planned = REAL.seeds * sum(len(cell.arms) for cell in REAL.cells)
    chosen = read_json(folder / f"{REAL.name}-choices.json", "what trials chose")
    title, _, rest = small.partition("\n\n")
    return (
        f"{title}\n\nThis page is made from the raw figures in `bench/results/elsa` by "
        f"`python -m bench.elsa.real page`; nothing on it is typed.\n\n{sections(REAL, lines, planned, chosen)}\n"
        "## Small models, text of the standard library\n\n" + rest.replace("\n## ", "\n### ")
    )
