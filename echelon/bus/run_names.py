"""Names of topics on a broker that several runs share: the run's name and an underscore stand before the topic's own.

No topic of the catalogue has an underscore in its name, so whose a topic is can be told from its name alone.
"""

from __future__ import annotations

import re

from echelon.errors import ConfigError

_RUN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_MARK = "_"


def check_run(run: str) -> str:
    """The name of a run, if it is one.

    Raises:
        ConfigError: it is none.
    """
    if not _RUN.fullmatch(run):
        raise ConfigError(
            f"run {run!r}: use 1 to 32 lower-case letters, digits and hyphens, with no hyphen at either end"
        )
    return run


def with_run(run: str, name: str) -> str:
    """What the broker calls a topic, or a group, of a run; a run without a name adds nothing."""
    return f"{run}{_MARK}{name}" if run else name


def parted(name: str) -> tuple[str, str]:
    """The run that a topic's or group's name on the broker names, or "", and the rest of it."""
    run, mark, rest = name.partition(_MARK)
    return (run, rest) if mark and rest and _RUN.fullmatch(run) else ("", name)
