"""The one guard around reading back what an actor stored: whatever does not fit ends in the declared error.

Stored state is our own, and most of it is behind a digest; but a file can be damaged, cut short, or of another version,
and whoever starts a service then needs a sentence and not a KeyError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgpack

from echelon.errors import CodecError, EchelonError, LimitExceeded, ProtocolError, StateError

REBUILT = "Move it away, and it is made again from the topics"
"""What to do about an actor's state."""
ANEW = "Restore the folder from a copy, or start the run anew in another"
"""What to do about a file of a run folder that nothing else holds."""


@contextmanager
def stored(
    what: str,
    kind: type[EchelonError] = StateError,
    *,
    advice: str = "Move it away, and it is made again from the topics",
) -> Iterator[None]:
    """Turn every way in which reading stored bytes can fail into `kind`, which says what it was and what to do.

    Args:
        what: begins the message: "the stored position in global".
        kind: `StateError`, or `CodecError` for a decoder whose caller names the file.
        advice: what to do.

    Raises:
        EchelonError: of that kind; a `StateError` of the reader passes as it is, and so do protocol
            errors that have a name of their own.
    """
    try:
        yield
    except StateError:
        raise
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, msgpack.UnpackException,
        CodecError, ProtocolError, LimitExceeded,
    ) as error:  # fmt: skip
        if isinstance(error, ProtocolError) and type(error) is not ProtocolError:
            raise  # a rule that is not allowed, for one, is no fault of what was stored
        reason = str(error)[:200] or type(error).__name__
        raise kind(
            f"{what} cannot be read ({reason}): it is damaged, or of another version. {advice}"
        ) from error
