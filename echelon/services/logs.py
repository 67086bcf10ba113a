"""The log of a service: one line an event on standard error, as JSON for machines or as text for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from pythonjsonlogger.json import JsonFormatter

from echelon.services.config import LogSettings

LEAST = {"aiokafka": logging.CRITICAL, "asyncio": logging.WARNING, "kafka": logging.WARNING}
"""Libraries that say too much: aiokafka has a line for every attempt of every connection, and the bus has one."""


def formatter(settings: LogSettings) -> logging.Formatter:
    """How lines look."""
    if settings.format == "json":
        return JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            rename_fields={"levelname": "level", "name": "logger"},
            timestamp="ts",
        )
    return logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


@contextmanager
def logging_as(
    settings: LogSettings, facts: Mapping[str, str], stream: IO[str] | None = None
) -> Iterator[None]:
    """Send every logger's lines to `stream` (standard error) while the block runs.

    What `facts` holds at the time (service, boundary, run, device) stands in every JSON line.

    Args:
        settings: level and format.
        facts: read anew for every line, so the caller may add to it later.
        stream: where lines go; None: standard error.
    """

    def add_facts(record: logging.LogRecord) -> bool:
        for name, value in facts.items():
            setattr(record, name, value)
        return True

    root = logging.getLogger()
    before = (root.level, {name: logging.getLogger(name).level for name in LEAST})
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(formatter(settings))
    handler.addFilter(add_facts)
    root.setLevel(settings.level.upper())
    for name, level in LEAST.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        root.setLevel(before[0])
        for name, level in before[1].items():
            logging.getLogger(name).setLevel(level)
