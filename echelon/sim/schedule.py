"""What one simulated run is made of: its settings, its links, and what goes wrong when. All of it is data.

A schedule repeats a run exactly. It can be written to a file, cut down (`echelon.sim.shrink`) and run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from echelon.config.reading import read_file
from echelon.config.run import RunSettings, parse
from echelon.errors import ConfigError
from echelon.messages.names import witness_of
from echelon.sim.coverage import PHASES
from echelon.sim.life import Call, Stage
from echelon.validation import sentence

MAX_FILE_BYTES = 1 << 20
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
What = Literal["crash", "cut", "slow", "leave", "late"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LinkSpec(_Part):
    """How one actor reaches one broker until faults stop; see `echelon.sim.broker.Link`."""

    actor: str
    broker: str
    latency: Seconds = 0.001
    jitter: Seconds = 0.0
    spread: Seconds = 0.0
    lose_before: Share = 0.0
    lose_after: Share = 0.0
    lose_read: Share = 0.0
    duplicate: Share = 0.0
    skew: float = 0.0


class Fault(_Part):
    """One thing that goes wrong, at a time or at a call of its actor.

    Attributes:
        what: crash: the process dies, and starts again after `seconds` (`gone`: never; `wipe`: without its state file).
            cut: the link to `broker` is cut for `seconds`. slow: it takes `latency` more for so long. leave: a device
            goes in order, and comes back `seconds` after it has (`gone`: never). late: the actor starts at `at`.
        actor: whose.
        at: seconds since the start; None: at a call.
        call: which call; `mark` is the one that notes what was sent.
        stage: before or after the call had its effect.
        kind: only calls with a record of this kind ("chunk" for a part of a payload); empty: any.
        phase: only calls that are made while the actor stands there (`echelon.sim.coverage.PHASES`); empty: any.
        nth: at the n-th such call since the run began, whichever life makes it.
    """

    what: What
    actor: str
    at: Seconds | None = None
    call: Call = "store"
    stage: Stage = "before"
    kind: str = ""
    phase: str = ""
    nth: Annotated[int, Field(ge=1)] = 1
    seconds: Seconds = 0.5
    gone: bool = False
    wipe: bool = False
    broker: str = ""
    latency: Seconds = 0.0

    def words(self) -> str:
        """For a person."""
        if self.at is None:
            kind = f" of {self.kind!r}" if self.kind else ""
            phase = f" while {self.phase}" if self.phase else ""
            when = f"{self.stage} {self.call} {self.nth}{kind}{phase}"
        else:
            when = f"at {self.at:.3f} s"
        rest = {
            "crash": ("for good" if self.gone else f"for {self.seconds:.2f} s")
            + (", state file lost" if self.wipe else ""),
            "cut": f"from {self.broker} for {self.seconds:.2f} s",
            "slow": f"to {self.broker}, {self.latency:.2f} s more for {self.seconds:.2f} s",
            "leave": "for good" if self.gone else f"back after {self.seconds:.2f} s",
            "late": "",
        }[self.what]
        return f"{self.what} {self.actor} {when}{': ' if rest else ''}{rest}"


class Schedule(_Part):
    """A run: see the module's docstring.

    Attributes:
        seed: of keys, learner and links.
        calm: seconds after which nothing goes wrong any more, and whoever is down is started.
        patience: seconds that the run then has to end.
        run: fields of a run file; its clock is virtual and its learner the quadratic one.
        links: those that are not perfect.
        faults: what goes wrong.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 31)]
    calm: Seconds = 10.0
    patience: Seconds = 600.0
    run: dict[str, Any]
    links: tuple[LinkSpec, ...] = ()
    faults: tuple[Fault, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Self:
        settings = self.settings()
        links = reachable(settings)
        for link in self.links:
            if link.broker not in links.get(link.actor, ()):
                raise ValueError(f"there is no link from {link.actor!r} to {link.broker!r}")
        for fault in self.faults:
            if fault.actor not in links:
                raise ValueError(f"a fault names {fault.actor!r}, which is no actor of the run")
            if fault.what in ("cut", "slow") and fault.broker not in links[fault.actor]:
                raise ValueError(f"a fault names the link from {fault.actor!r} to {fault.broker!r}")
            role = role_of(fault.actor, settings)
            if fault.phase and fault.phase not in PHASES[role]:
                raise ValueError(f"a {role} is never {fault.phase!r}: one of {', '.join(PHASES[role])}")
            if (fault.gone or fault.what == "leave") and role != "device":
                raise ValueError(f"only devices leave, or go for good; {fault.actor!r} is none")
            if fault.what == "late" and fault.at is None:
                raise ValueError(f"{fault.actor} is late, and does not say until when: give `at`")
        return self

    def settings(self) -> RunSettings:
        """The run file.

        Raises:
            ConfigError: it cannot be used.
        """
        fixed = {"name": "explored", "clock": "virtual", "seed": self.seed}
        return parse({**self.run, **fixed}, f"schedule of seed {self.seed}")

    def text(self) -> str:
        """As a file holds it."""
        return self.model_dump_json(indent=1, exclude_defaults=True) + "\n"


def load(path: Path) -> Schedule:
    """Read a schedule.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    data = read_file(path, "schedule", MAX_FILE_BYTES)
    try:
        return Schedule.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"schedule {path}: {place}: {sentence(problem)}") from None


def role_of(actor: str, settings: RunSettings) -> str:
    """controller, aggregator, gate, edge, witness or device."""
    if actor == "controller":
        return actor
    if actor in map(witness_of, settings.witnesses.names):
        return "witness"
    for boundary in settings.boundaries:
        if actor in boundary.edge_names():
            return "edge"
        if actor in (f"{boundary.name}.aggregator", f"{boundary.name}.gate"):
            return actor.rpartition(".")[2]
    return "device"


def reachable(settings: RunSettings) -> dict[str, tuple[str, ...]]:
    """The brokers that each actor reaches, its own first."""
    brokers: dict[str, tuple[str, ...]] = {"controller": ("exchange",)}
    brokers |= {witness_of(name): ("exchange",) for name in settings.witnesses.names}
    for boundary in settings.boundaries:
        brokers[f"{boundary.name}.aggregator"] = (boundary.name,)
        brokers[f"{boundary.name}.gate"] = (boundary.name, "exchange")
        brokers |= {edge: (boundary.name,) for edge in boundary.edge_names()}
        brokers |= {device.id: (boundary.name,) for device in boundary.device_list()}
    return brokers
