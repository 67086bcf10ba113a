"""Fills in the templates of pages. Every value is escaped, except what another template has made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup


class _Joined(Extension):
    """Templates are indented for those who read them: an indented line continues the one before it."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The source without line breaks that only indent."""
        return re.sub(r"\n(?: +|(?={% endmacro))", "", source)


@cache
def _environment() -> Environment:
    loader = PackageLoader("echelon.report", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, extensions=[_Joined])


@cache
def _module(file: str) -> Any:
    return _environment().get_template(file).module


def fill(file: str, macro: str, **values: object) -> Markup:
    """The HTML that a macro of a template makes from values.

    Args:
        file: name of the template in `echelon/report/templates`.
        macro: name of the macro in it.
        values: its arguments. A `str` is escaped; a `Markup` is HTML already and stands as it is.

    Returns:
        HTML, which other templates take as it is.

    Raises:
        jinja2.UndefinedError: the macro uses a name that it was not given.
    """
    return Markup(getattr(_module(file), macro)(**values))


def joined(parts: Iterable[Markup]) -> Markup:
    """Several pieces of HTML, one after the other."""
    return Markup("").join(parts)
