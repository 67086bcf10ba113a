"""Outer steps, paces and kinds of adapters, by the names that the manifest and run files give them: the only list.

A new one is a file in `outer/`, `pace/` or `adapters/`, a line in the registry there, and its name here with the words
that describe it in the table of settings.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class RuleKind(StrEnum):
    """A rule's name. `about` is what the table of settings says of it."""

    about: str

    def __new__(cls, value: str, about: str = "") -> Self:
        """The member of that name; without further words its name describes it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.about = about or value
        return member

    @classmethod
    def described(cls) -> str:
        """What the table of settings says of all."""
        return "; ".join(kind.about for kind in cls) + "."


class OuterKind(RuleKind):
    """The outer optimiser."""

    AVERAGE = "average"
    NESTEROV = "nesterov", "nesterov (DiLoCo's 0.7 / 0.9, for long runs)"
    FEDADAM = "fedadam"
    CORRECTED = "corrected", "corrected: nesterov, after what a delta says against the momentum was damped"


class PaceKind(RuleKind):
    """What decides H and R."""

    FIXED = "fixed"
    ECHELON_DA = "echelon-da", "echelon-da: by measured drift, never shorter than what hides a sync"
    ADACOMM = "adacomm", "adacomm: H by the loss"
    QSR = "qsr", "qsr: H by the learning rate"
    FDA = "fda", "fda: H by the variance among boundaries (after FDA-Opt)"


class AdapterKind(RuleKind):
    """Which numbers of an adapter are trained and travel."""

    LORA = "lora", "lora: A and B are trained"
    FFA = "ffa", "ffa: A is frozen, B is trained (FFA-LoRA)"
    FED_SB = "fed-sb", "fed-sb: a core of rank × rank is trained between frozen B and A (Fed-SB)"
    RAVAN = "ravan", "ravan: several heads, each with a core between frozen B and A, and a scale (Ravan)"
    FEDSA = "fedsa", "fedsa: A and B are trained, and B stays on its device (FedSA-LoRA)"
