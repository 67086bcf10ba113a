"""What pages are made of: framed boxes, sections, charts for two widths of screen, and the document around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files

from markupsafe import Markup

from echelon.report.svg import colour_class
from echelon.report.templates import fill

FILE = "components.html"
# A page that may load nothing and run nothing: the reader's browser holds it to that.
CONTENT_POLICY = Markup("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")


def shell_word(text: str) -> str:
    """A path as one word of a shell command."""
    safe = text and all(c.isalnum() or c in "/._-+=:," for c in text) and not text.startswith("-")
    return text if safe else "'" + text.replace("'", "'\\''") + "'"


def both(draw: Callable[[int, int], str], wide: tuple[int, int], narrow: tuple[int, int]) -> Markup:
    """Two charts, for wide and for narrow screens. The style sheet shows one of them.

    Scaling a single one would shrink its letters beyond reading on a telephone.

    Args:
        draw: draws the chart as SVG for a width and a height in pixels; "" where there is nothing to draw. It
            escapes its texts itself, as everything in `echelon.report.svg` does.
        wide: width and height for wide screens.
        narrow: width and height for narrow screens.

    Returns:
        HTML; empty where there is nothing to draw.
    """
    large, small = draw(*wide), draw(*narrow)
    return fill(FILE, "both", wide=Markup(large), narrow=Markup(small)) if large else Markup("")


def panel(body: Markup, empty: str = "", title: str = "") -> Markup:
    """A framed box.

    Args:
        body: what stands in it.
        empty: the sentence that stands there instead if there is no body: it says why.
        title: a heading; "" for none.

    Returns:
        HTML.
    """
    return fill(FILE, "panel", body=body, empty=empty, title=title)


def section(title: str, about: str, body: Markup) -> Markup:
    """A part of the page.

    Args:
        title: its heading.
        about: a sentence that says what is seen.
        body: what stands in it.

    Returns:
        HTML.
    """
    return fill(FILE, "section", title=title, about=about, body=body)


def about(text: str) -> Markup:
    """A sentence that explains what stands beside it."""
    return fill(FILE, "about", text=text)


def pair(parts: Sequence[Markup]) -> Markup:
    """Boxes in two columns, where the screen has room for two."""
    return fill(FILE, "pair", parts=parts)


def legend(items: Sequence[tuple[str, int]]) -> Markup:
    """Names with the colour of each, an index into the palette."""
    return fill(FILE, "legend", items=[(name, colour_class("f", colour)) for name, colour in items])


def figures(cards: Sequence[tuple[str, str, str]]) -> Markup:
    """Small cards in a row: what it is, the figure, a remark."""
    return fill(FILE, "figures", cards=cards)


def header_notes(title: str, notes: Sequence[str]) -> Markup:
    """Sentences about what could not be read; nothing where there are none."""
    return fill(FILE, "notes", title=title, items=notes) if notes else Markup("")


def header(kicker: str, title: str, lede: str, more: Markup) -> Markup:
    """The head of a page.

    Args:
        kicker: a word above the title.
        title: what the page is about.
        lede: facts in one line below it.
        more: what stands below that.

    Returns:
        HTML.
    """
    return fill(FILE, "header", kicker=kicker, title=title, lede=lede, more=more)


def document(title: str, header: Markup, body: Markup) -> Markup:
    """The page around its parts: one HTML document in UTF-8 without scripts, that loads nothing from anywhere.

    Args:
        title: of the browser's window.
        header: the head of the page.
        body: its sections.

    Returns:
        The document.
    """
    style = Markup(files("echelon.report").joinpath("report.css").read_text(encoding="utf-8"))
    return fill(FILE, "document", title=title, policy=CONTENT_POLICY, style=style, header=header, body=body)
