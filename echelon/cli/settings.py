"""`echelon settings`: what may stand in a run file, all of it or what fits a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from echelon.config.table import SettingSection


def _completed(incomplete: str) -> list[str]:
    """Paths of settings, for a shell that completes a word."""
    from echelon.config.table import sections

    return [row.path for section in sections() for row in section.rows if row.path.startswith(incomplete)]


def settings_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...",
            help="A setting (sync.steps), a section (training), or words of what it does. None: every setting.",
            show_default=False,
            autocompletion=_completed,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the settings of a run file: type, bounds, default, and what each of them does.

    Exit codes: 0 there are such settings; 2 there are none.
    """
    with guarded():
        from echelon.config.search import nearest, search
        from echelon.config.table import sections
        from echelon.errors import ConfigError

        table, wanted = list(sections()), " ".join(words or ()).split()
        found = search(table, wanted)
        if not found:
            near = nearest(table, wanted)
            advice = f"did you mean {', or '.join(near)}?" if near else "`echelon settings` lists all of them"
            raise ConfigError(f"no setting fits {' '.join(wanted)[:200]!r}; {advice}")
        if as_json:
            print_json([_plain(section) for section in found])
        else:
            _show(found)


def _plain(section: SettingSection) -> dict[str, object]:
    return {
        "section": section.path,
        "about": section.about,
        "settings": [
            {
                "path": row.path,
                "type": row.kind,
                "default": row.default.strip("*`"),
                "description": row.description,
            }
            for row in section.rows
        ],
    }


def _show(found: Sequence[SettingSection]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    # Where nobody looks, one description is one line: programs that search lines find it whole.
    whole = not console.is_terminal
    for number, section in enumerate(found):
        title = f"{section.path}: {section.about}" if section.path else "The run"
        console.print(Text(("\n" if number else "") + title, style="bold underline"), soft_wrap=whole)
        for row in section.rows:
            kind = row.kind.replace("`", "")
            default = {"**required**": "required", "none": "none unless given"}.get(
                row.default, f"default {row.default.strip('`')}"
            )
            console.print(Text.assemble("  ", (row.path, "bold"), f"  {kind}; {default}"), soft_wrap=whole)
            text = Text(row.description.replace("`", ""), style="dim")
            if whole:
                console.print(Text("      ") + text, soft_wrap=True)
            else:
                console.print(Padding(text, (0, 0, 0, 6)))
