"""What pages are made of: framed boxes, sections, charts for two widths of screen, and the document around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files

from echelon.report.svg import colour_class, escape

# A page that may load nothing and run nothing: the reader's browser holds it to that.
CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def shell_word(text: str) -> str:
    """A path as one word of a shell command."""
    safe = text and all(c.isalnum() or c in "/._-+=:," for c in text) and not text.startswith("-")
    return text if safe else "'" + text.replace("'", "'\\''") + "'"


def both(draw: Callable[[int, int], str], wide: tuple[int, int], narrow: tuple[int, int]) -> str:
    """A chart for wide and one for narrow screens, of which the style sheet shows one; "" when there is none.

    Scaling a single one would shrink its letters beyond reading on a telephone.
    """
    large, small = draw(*wide), draw(*narrow)
    return f'<div class="wide-only">{large}</div><div class="narrow scroll">{small}</div>' if large else ""


def panel(body: str, empty: str = "", title: str = "") -> str:
    """A framed box; with no body, the sentence that says why."""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    inside = body or f'<p class="empty">{escape(empty)}</p>'
    return f'<div class="panel">{head}{inside}</div>'


def section(title: str, about: str, body: str) -> str:
    """A heading, a sentence on what is seen, and the body."""
    return f'<section><h2>{escape(title)}</h2><p class="about">{escape(about)}</p>{body}</section>'


def legend(items: Sequence[tuple[str, int]]) -> str:
    """Names with the colour of each, an index into the palette."""
    listed = "".join(
        f'<li><i class="{colour_class("f", colour)}"></i>{escape(name)}</li>' for name, colour in items
    )
    return f'<ul class="legend">{listed}</ul>'


def figures(cards: Sequence[tuple[str, str, str]]) -> str:
    """Small cards in a row: what it is, the figure, a remark."""
    cells = "".join(
        f'<div class="card num"><div class="name">{escape(name)}</div><div class="figure">'
        f"{escape(figure)}</div>"
        f'<div class="under">{escape(under)}</div></div>'
        for name, figure, under in cards
    )
    return f'<div class="cards small">{cells}</div>'


def document(title: str, header: str, body: str) -> str:
    """The page around its parts: one HTML document in UTF-8 without scripts, that loads nothing from anywhere."""
    style = files("echelon.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)} · Echelon</title><style>'
        f"{style}</style></head>"
        f"<body>{header}<main>{body}</main>"
        "<footer>Made by <code>echelon report</code>. One file, no scripts, nothing loaded from "
        "anywhere.</footer>"
        "</body></html>\n"
    )
