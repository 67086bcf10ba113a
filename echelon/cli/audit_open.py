"""`echelon audit open`: one device of one window shown to an auditor outside, under the root that crossed.

`request` draws a window and a leaf, outside. `answer` makes the proof, inside. `check` holds it against the exchange,
outside.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from echelon.audit.boundary import CONTROL
from echelon.audit.boundary_facts import ExchangeFacts, Unopened
from echelon.audit.openings import MAX_OPENING_BYTES, Answer, Request, WindowRoster
from echelon.cli.audit_options import (
    GenesisOption,
    RosterOption,
    SecurityOption,
    SourceArgument,
    digest_of,
    guarded,
)
from echelon.cli.audit_state import write_file
from echelon.cli.output import prose
from echelon.config.reading import read_file
from echelon.errors import AuditError, CodecError, ConfigError
from echelon.sources.exchange import opened

app = typer.Typer(
    name="open", no_args_is_help=True, help="Show one device of one window, under the root that crossed."
)

OutOption = Annotated[Path, typer.Option(help="File to write.", metavar="FILE")]


def _facts(source: str, security: Path | None, boundary: str, genesis: bytes | None) -> ExchangeFacts:
    with opened(source, security) as place:
        facts = ExchangeFacts.read(place.topics, boundary)
    if genesis is not None and facts.genesis_sha256 != genesis:
        raise AuditError(
            f"genesis has SHA-256 {facts.genesis_sha256.hex()}, pinned is {genesis.hex()}: another run"
        )
    return facts


def _request(path: Path) -> Request:
    try:
        return Request.decode(read_file(path, "request", MAX_OPENING_BYTES))
    except CodecError as error:
        raise ConfigError(f"{path}: {error}") from error


@app.command("request")
def request_command(
    source: SourceArgument,
    boundary: Annotated[str, typer.Option(help="Name of the boundary that is asked.")],
    out: OutOption,
    security: SecurityOption = None,
    genesis: GenesisOption = None,
) -> None:
    """Outside: draw a window of those that crossed, and one of its devices."""

    def action() -> int:
        facts = _facts(source, security, boundary, digest_of(genesis))
        deltas = [delta for _, delta in facts.deltas]
        request = Request.choose(facts.manifest, boundary, deltas, os.urandom(32))
        write_file(out, request.encode(), "--out")
        prose(
            Console(),
            f"asks boundary {boundary} for device {request.index + 1} of {request.heads} of window {request.window}; "
            f"written to {out}",
        )
        return 0

    guarded(action)


@app.command("answer")
def answer_command(
    boundary: Annotated[
        str, typer.Argument(help="The boundary's run folder, export, .sqlite file, broker URL or .yaml file.")
    ],
    request: Annotated[Path, typer.Argument(help="File of `request`.")],
    out: OutOption,
    exchange: Annotated[
        str | None,
        typer.Option(help="Hold the request against this exchange first: its nonce must make its choice."),
    ] = None,
    roster: RosterOption = None,
) -> None:
    """Inside: make the proof for the device that was drawn."""

    def action() -> int:
        asked = _request(request)
        if exchange is not None:
            facts = _facts(exchange, None, asked.boundary, None)
            asked.check(facts.manifest, [delta for _, delta in facts.deltas])
        answer = _answer(boundary, roster, asked)
        write_file(out, answer.encode(), "--out")
        prose(
            Console(),
            f"shows device {answer.device} of window {answer.window}; written to {out}",
        )
        return 0

    guarded(action)


def _answer(source: str, path: Path | None, asked: Request) -> Answer:
    from echelon.sources import boundary as boundary_source

    for place in boundary_source.places(source, path):
        roster = boundary_source.read_roster(place.roster)
        if roster.boundary != asked.boundary:
            continue
        members = boundary_source.members(bytes.fromhex(asked.run), roster)
        rosters = WindowRoster()
        with opened(place.source) as exchange:
            records = exchange.topics.get(CONTROL, iter(()))
            empty = boundary_source.no_payloads()
            for item in boundary_source.opened_records(members, empty, CONTROL, records):
                leaves = None if isinstance(item, Unopened) else rosters.take(item.message)
                if leaves is not None and not isinstance(item, Unopened) and item.window == asked.window:
                    return Answer.to(asked, leaves)
        raise AuditError(f"boundary {asked.boundary} has no window {asked.window} that closed with a sum")
    raise ConfigError(f"{source} is not boundary {asked.boundary}, which the request is to")


@app.command("check")
def check_command(
    source: SourceArgument,
    request: Annotated[Path, typer.Argument(help="File of `request`.")],
    answer: Annotated[Path, typer.Argument(help="File of `answer`.")],
    security: SecurityOption = None,
    genesis: GenesisOption = None,
) -> None:
    """Outside: hold the proof against the request, and both against the exchange."""

    def action() -> int:
        asked = _request(request)
        facts = _facts(source, security, asked.boundary, digest_of(genesis))
        asked.check(facts.manifest, [delta for _, delta in facts.deltas])
        try:
            shown = Answer.decode(read_file(answer, "answer", MAX_OPENING_BYTES))
        except CodecError as error:
            raise AuditError(f"{answer}: {error}") from error
        shown.check(asked, facts.manifest)
        prose(
            Console(),
            f"SHOWN: device {shown.index + 1} of {shown.size} of window {shown.window} of boundary {shown.boundary}, "
            f"under the root that crossed with delta {asked.seq}: {shown.device}, weight {shown.weight}, trained from "
            f"version {shown.base_version}",
        )
        return 0

    guarded(action)
