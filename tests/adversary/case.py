"""An attack of insiders: who plays it, what he does, and who must notice, by which finding, of which record.

The modules `on_*` declare cases; `test_cases` plays each and holds what was noticed against what is declared, and
docs/threat-model.md has the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Insider(StrEnum):
    """Somebody with real keys of his own, and the rights that go with them."""

    DEVICE = "device"
    DEVICES = "c devices"
    AGGREGATOR = "aggregator"
    EDGE = "edge"
    GATE = "gate"
    CONTROLLER = "controller"
    OPERATOR = "operator"
    BROKER = "broker"
    WITNESS = "witness"


UNDETECTED = "undetected"
"""The finding of an attack that succeeds and that nobody notices."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """Somebody noticed something.

    Attributes:
        by: who.
        finding: the code of a finding, the reason of a refusal, or `refused` or `no answer`.
        record: the record that is named: `TOPIC@OFFSET`, a topic, or words that name it.
    """

    by: str
    finding: str
    record: str


@dataclass(frozen=True, slots=True)
class Played:
    """How an attack went.

    Attributes:
        noticed: all that anybody noticed.
        gained: whether the insiders have what they wanted, and nobody objects.
    """

    noticed: tuple[Noticed, ...]
    gained: bool


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        name: unique.
        who: the insiders.
        kind: of attack.
        does: what they do, in a few words.
        by: who must notice.
        finding: what he must say; `UNDETECTED`: nobody notices, and the insiders gain what they wanted.
        record: the record that he must name: the whole of `Noticed.record`, or words in it.
        play: plays it.
        reason: why nobody notices.
        but: why an attack succeeds although it is noticed; empty: what is noticed gains nothing.
        slow: takes seconds.
    """

    name: str
    who: tuple[Insider, ...]
    kind: str
    does: str
    by: str
    finding: str
    record: str
    play: Callable[[], Played]
    reason: str = ""
    but: str = ""
    slow: bool = False

    @property
    def detected(self) -> bool:
        """Whether somebody must notice."""
        return self.finding != UNDETECTED


class Cases:
    """The cases of one module, as they are declared."""

    def __init__(self, plane: str) -> None:
        self.plane = plane
        self.found: list[Case] = []

    def add(
        self,
        who: str,
        kind: str,
        does: str,
        play: Callable[[], Played],
        *,
        by: str = "",
        finding: str = UNDETECTED,
        record: str = "",
        reason: str = "",
        but: str = "",
        slow: bool = False,
    ) -> None:
        """Declare a case; `who` is one insider, or two with ` + ` between them."""
        insiders = tuple(sorted((Insider(one) for one in who.split(" + ")), key=list(Insider).index))
        name = f"{self.plane}: {' + '.join(insiders)}: {does}"
        self.found.append(Case(name, insiders, kind, does, by, finding, record, play, reason, but, slow))


def table(cases: Sequence[Case]) -> str:
    """What docs/threat-model.md says of the cases: what succeeds, and then who is noticed by whom, kind by kind."""
    ordered = sorted(cases, key=lambda case: (len(case.who), [list(Insider).index(one) for one in case.who]))
    lines = [
        f"{len(cases)} attacks are played, by each insider alone and by each pair. These succeed:",
        "",
        "| who | kind | what they do | noticed | why it succeeds |",
        "|---|---|---|---|---|",
    ]
    for case in ordered:
        if not case.detected:
            lines.append(f"| {_who(case)} | {case.kind} | {case.does} | by nobody | {case.reason} |")
        elif case.but:
            lines.append(
                f"| {_who(case)} | {case.kind} | {case.does} | {case.by}: {case.finding} | {case.but} |"
            )
    lines += [
        "",
        "All of them, by kind; whoever notices names the record, which the cases in `tests/adversary/` state:",
        "",
        "| who | kind of attack | played | detected | by whom: finding |",
        "|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in ordered:
        groups.setdefault((_who(case), case.kind), []).append(case)
    for (who, kind), group in groups.items():
        detected = sum(case.detected for case in group)
        said = "yes" if detected == len(group) else "no" if not detected else f"{detected} of them"
        lines.append(f"| {who} | {kind} | {len(group)} | {said} | {_findings(group) or 'nobody'} |")
    return "\n".join(lines)


def _who(case: Case) -> str:
    return " + ".join(case.who)


def _findings(cases: Iterable[Case]) -> str:
    """Who notices, and by which findings."""
    found: dict[str, set[str]] = {}
    for case in cases:
        if case.detected:
            found.setdefault(case.by, set()).add(case.finding)
    return "; ".join(f"{by}: {', '.join(sorted(findings))}" for by, findings in sorted(found.items()))
