"""Six domains and a base for the contest: prepare the text, make or check the base, measure how domains differ.

python -m bench.domains prepare FOLDER        fetch packages, write FOLDER/text and its manifest
python -m bench.domains base FOLDER           cut and heal the base, into FOLDER/packed
python -m bench.domains check FOLDER          text against the committed manifest, the base against its record
python -m bench.domains heterogeneity FOLDER  one adapter for each domain, evaluated on all of them
python -m bench.domains regime FOLDER         the plan's arms on dev seeds: whether they part
python -m bench.domains trials FOLDER         what the studies' arms are tuned with, on dev text
python -m bench.domains run FOLDER            the studies' reported runs that are not there yet
python -m bench.domains page FOLDER           the studies' page, from what is there

With `--large`, `run` takes the model of 135M parameters, of which the base is a part, and the short plan `large.json`,
with the settings that the base's trials chose.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

from bench.domains.documents import DOMAINS
from bench.domains.prepare import Split, check, prepare
from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError
from tools.telling import telling

if TYPE_CHECKING:
    from bench.contest.execute import Failure
    from bench.domains.studies.run import Studies

RESULTS = Path(__file__).resolve().parents[1] / "results" / "domains"
MANIFEST, DEV = RESULTS / "manifest.json", RESULTS / "dev.jsonl"
HETEROGENEITY = RESULTS / "heterogeneity.json"
PAGE = Path("docs/contest-domains.md")
PEERS, CONTEST = RESULTS.parent / "flower_lora.json", RESULTS.parent / "contest"
PLAN = Path(__file__).with_name("plan.json")
STUDIES, LARGE_STUDIES = (Path(__file__).with_name(name) for name in ("studies.json", "large.json"))
Data = TypeVar("Data")
SHIPPED = Path(__file__).with_name("kept")
"""The packed base of the repository; a folder's own one goes before it."""
TEXT, BASE, PACKED, LARGE = "text", "base", "packed", "real"
WHOLE, LARGE_RESULTS = "smollm2-135m", "large"


def tell(text: str) -> None:
    """Progress; figures go to stdout."""
    print(text, file=sys.stderr, flush=True)


def _given(kind: type[Data], options: argparse.Namespace) -> Data:
    """A data class with what the command line says of it, and its defaults for the rest."""
    chosen = {one.name: getattr(options, one.name, None) for one in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in chosen.items() if value is not None})


def _packed(options: argparse.Namespace) -> Path:
    """The packed base that is used: the folder's own, if one was made there, or the repository's."""
    from bench.domains.base import RECORD

    own: Path = options.folder / PACKED
    return own if (own / RECORD).exists() or not SHIPPED.exists() else SHIPPED


def _expanded(options: argparse.Namespace) -> tuple[Path, str]:
    """The folder of the base as a run loads it, and the base's name. Two bases never share a folder."""
    from bench.domains.base import expand, name_of

    packed = _packed(options)
    name = name_of(packed)
    return expand(options.folder / BASE / name, packed), name


def _prepare(options: argparse.Namespace) -> None:
    manifest = prepare(options.folder / TEXT, tell)
    if options.commit:
        write_json(MANIFEST, manifest)
    for name, one in manifest["sets"].items():
        counts = ", ".join(f"{split} {said['documents']}" for split, said in one["splits"].items())
        tell(f"{name}: documents {counts}")


def _base(options: argparse.Namespace) -> None:
    from bench.domains.base import make
    from bench.domains.heal import Healing
    from tools.real.prepare import prepare as fetch_large

    prepare(options.folder / TEXT, tell)
    fetch_large(options.folder / LARGE, tell)
    large = options.folder / LARGE / WHOLE
    healing = _given(Healing, options)
    record = make(options.folder / TEXT, large, options.folder / PACKED, tell, healing=healing)
    tell(f"held-out loss: {json.dumps(record['held_out_loss'])}")


def _check(options: argparse.Namespace) -> None:
    from bench.domains.base import check as check_base

    wrong = check(options.folder / TEXT, read_json(MANIFEST, "the domains' manifest"))
    if wrong:
        raise ConfigError(f"not as {MANIFEST.name} has it: {', '.join(wrong)}; make {TEXT} anew")
    tell("the text is that of the manifest")
    said, found = check_base(options.folder / TEXT, _packed(options))
    tell(f"the base has a held-out loss of {found:.4f} nats a token; its record says {said:.4f}")


def _heterogeneity(options: argparse.Namespace) -> None:
    from bench.domains.heterogeneity import Budget, as_table, measure

    budget = _given(Budget, options)
    prepare(options.folder / TEXT, tell)
    model, _ = _expanded(options)
    figures = measure(options.folder / TEXT, str(model), budget, tell, options.domain or tuple(DOMAINS))
    tell(as_table(figures))
    print(json.dumps(figures))


def _regime(options: argparse.Namespace) -> None:
    from bench.domains.regime import as_table, load_plan, load_trials, parted, search

    plan = load_plan(options.plan)
    plans = load_trials(options.trials, plan) if options.trials else {"plan": plan}
    prepare(options.folder / TEXT, tell)
    base, model = _expanded(options)
    results = Results(options.results)
    with tempfile.TemporaryDirectory(prefix="echelon-regime-") as place:
        for name, one in plans.items():
            tell(f"{name}:")
            jobs = search(
                one,
                options.folder.absolute() / TEXT,
                f"./{model}",
                base=base,
                folder=Path(place),
                results=results,
                say=tell,
            )
            tell(as_table(parted(jobs, results)))


def _studies(options: argparse.Namespace, large: bool = False) -> Studies:
    from bench.domains.studies.plan import Plan
    from bench.domains.studies.run import Studies

    prepare(options.folder / TEXT, tell)
    base, name = (options.folder / LARGE / WHOLE, WHOLE) if large else _expanded(options)
    return Studies(
        plan=Plan.load(options.plan or (LARGE_STUDIES if large else STUDIES)),
        text=options.folder.absolute() / TEXT,
        base=base,
        name=name,
        folder=options.results / LARGE_RESULTS if large else options.results,
        workers=options.workers,
        tell=tell,
        tuned=options.results,
    )


def _done(failures: Sequence[Failure]) -> None:
    for failure in failures:
        tell(f"{failure.job.arm} in {failure.job.cell.name}: {failure.why}")
    if failures:
        raise ConfigError(f"{len(failures)} runs failed; the others are stored")


def _trials(options: argparse.Namespace) -> None:
    _done(_studies(options).tune())


def _run(options: argparse.Namespace) -> None:
    from tools.real.prepare import prepare as fetch_large

    if options.large:
        fetch_large(options.folder / LARGE, tell)
    _done(_studies(options, options.large).run(tuple(options.study or ())))


def _page(options: argparse.Namespace) -> None:
    from bench.contest.band import band_of
    from bench.contest.page import validation_of
    from bench.domains.heterogeneity import as_table
    from bench.domains.studies.page import Beside, page
    from bench.domains.studies.plan import SPREAD
    from bench.domains.studies.tables import apart_table
    from bench.elsa.claims import ElsaFigures, found_claims
    from bench.flower_lora import section

    studies = _studies(options)
    large = _studies(options, large=True).answers()[SPREAD]
    beside = Beside(
        heterogeneity=as_table(read_json(HETEROGENEITY, "how domains differ")),
        claims=found_claims(ElsaFigures.load(RESULTS.parent)),
        large=apart_table(large) if large.begun else None,
        peers=section(read_json(PEERS, "figures beside Flower")) if PEERS.exists() else None,
    )
    band = band_of(validation_of(CONTEST, "small"))
    answers = {name: replace(one, band=band) for name, one in studies.answers().items()}
    text = page(studies.plan, answers, studies.decided()[1], beside)
    options.out.write_text(text, "utf-8")
    tell(f"written: {options.out}")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.domains",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = {}
    for name, run, about in (
        ("prepare", _prepare, "fetch packages and write text"),
        ("base", _base, "cut and heal the base"),
        ("check", _check, "compare text and base with what is committed"),
        ("heterogeneity", _heterogeneity, "measure how domains differ"),
        ("regime", _regime, "run the plan's arms on dev seeds, and say whether they part"),
        ("trials", _trials, "run the trials of the studies' arms on dev text"),
        ("run", _run, "run what is missing of the studies"),
        ("page", _page, "write the studies' page"),
    ):
        made[name] = commands.add_parser(name, help=about)
        made[name].add_argument("folder", type=Path)
        made[name].set_defaults(run=run)
    made["prepare"].add_argument("--commit", action="store_true", help="write the manifest's copy, too")
    for name in ("steps", "decay"):
        made["base"].add_argument(
            f"--{name}", type=int, help="of the healing; may change until the rate falls"
        )
    made["base"].add_argument("--products", choices=("float32", "bfloat16"), help="numbers of the healing")
    one = made["heterogeneity"]
    for name in ("steps", "rank", "eval_tokens", "seed"):
        one.add_argument(f"--{name.replace('_', '-')}", dest=name, type=int)
    one.add_argument("--lr", type=float)
    one.add_argument("--split", choices=get_args(Split))
    one.add_argument("--domain", action="append", choices=tuple(DOMAINS), help="only these")
    made["regime"].add_argument("--plan", type=Path, default=PLAN, help="sizes; default: %(default)s")
    made["regime"].add_argument(
        "--trials", type=Path, help="what to change about the plan, by name; each is run"
    )
    made["regime"].add_argument(
        "--results", type=Path, default=DEV, help="lines of runs; default: %(default)s"
    )
    for name in ("trials", "run", "page"):
        made[name].add_argument("--plan", type=Path, help="the studies; default: those of the repository")
        made[name].add_argument(
            "--results", type=Path, default=RESULTS, help="folder of lines; default: %(default)s"
        )
        made[name].add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    made["run"].add_argument("--study", action="append", help="only this one; may be repeated")
    made["run"].add_argument("--large", action="store_true", help="with the model of 135M parameters")
    made["page"].add_argument("--out", type=Path, default=PAGE, help="default: %(default)s")
    return parser.parse_args(arguments)


@telling
def main(arguments: Sequence[str] | None = None) -> None:
    """0; 1 with the reason on stderr when something could not be had or does not hold."""
    options = options_of(arguments)
    options.run(options)


if __name__ == "__main__":
    raise SystemExit(main())
