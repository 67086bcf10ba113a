"""Write the table of all settings of a run file, as Markdown, from the models that validate it.

python scripts/settings.py docs/settings.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from echelon.config.table import sections

HEAD = """# Settings

Every setting of a run file, with its type, default and bounds. Written by `scripts/settings.py` from the code that
validates run files; `just docs-settings` writes it anew. Unknown keys are refused.
`echelon settings` shows the same on the command line, and `echelon settings WORD` what fits a word.

On the command line, `--set a.b=value` changes one setting; items of a list are addressed by their number, as in
`--set boundaries.0.devices=6`.
"""


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for section in sections():
        if not section.rows:
            continue
        title = f"`{section.path}`" if section.path else "The run"
        parts.append(f"\n## {title}\n")
        if section.about:
            parts.append(f"\n{section.about}\n")
        parts.append("\n| setting | type | default | what it does |\n|---|---|---|---|\n")
        for row in section.rows:
            cells = (f"`{row.path}`", row.kind, row.default, row.description)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def main() -> None:
    """Write the page to the file that is named."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/settings.py OUT")
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
