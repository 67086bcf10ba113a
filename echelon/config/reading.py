"""Reading files that people write: bytes from a regular file, and plain values from YAML, both within bounds.

Every YAML file of the project goes through `load_yaml`, and every small file through `read_file`. A file that was
made to do harm costs a bounded amount, and ends with a sentence: deep nesting, aliases that multiply ("billion
laughs"), one key twice, numbers of thousands of digits, text that is no Unicode, a pipe in place of a file.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from echelon.errors import ConfigError

MAX_DEPTH = 32
"""Deepest nesting of lists and maps: our own files have at most eight levels."""
MAX_VALUES = 1 << 18
"""Most values of one document, with every alias followed: a run file that lists 4,096 devices has about 20,000."""
MAX_NUMBER_DIGITS = 64
"""Longest number as text: a double has 17 digits that matter, an integer of 64 bits 20."""
MAX_INTEGER = 1 << 64
"""Magnitude that no integer of a setting reaches."""
_MAP, _LIST = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_SCALARS = _NUMBERS | {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "str", "merge", "value")}


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; a pipe, a device or a folder is none, and nothing waits for it.

    Args:
        path: the file.
        follow: whether a symbolic link may stand in its place.

    Raises:
        OSError: it cannot be opened, or is no regular file; `strerror` says why.
    """
    if "\0" in str(path):
        raise OSError(0, "its name has a NUL character", str(path))
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    if not follow and path.is_symlink():
        raise OSError(0, "it is a symbolic link, which is not followed", str(path))
    handle = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "it is no regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(
    path: Path, what: str, limit: int, *, advice: str = "Check the path", follow: bool = True
) -> bytes:
    """The bytes of a file of at most `limit` bytes.

    Args:
        path: the file.
        what: what it is, as the message begins: "run file".
        limit: bytes; no more than one above it is ever read.
        advice: what to do where it cannot be read.
        follow: see `open_regular`.

    Raises:
        ConfigError: it cannot be read, is no regular file, or is longer.
    """
    try:
        with open_regular(path, follow=follow) as file:
            size = min(limit, os.fstat(file.fileno()).st_size)
            data = file.read(size + 1)  # no buffer of the limit's size for a small file
            if len(data) > size:  # it has grown meanwhile, or its size is not known
                data += file.read(limit + 1 - len(data))
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror}. {advice}") from error
    if len(data) > limit:
        raise ConfigError(f"{what} {path} is larger than {limit} bytes, the most that is taken")
    return data


def read_text(path: Path, what: str, limit: int, *, advice: str = "Check the path") -> str:
    """The UTF-8 text of a file; see `read_file`.

    Args:
        path: the file.
        what: what the file is, for the error: "run file".
        limit: most bytes that are read.
        advice: what to do if it cannot be read; a sentence without its full stop.

    Raises:
        ConfigError: as `read_file`, or it is not UTF-8.
    """
    data = read_file(path, what, limit, advice=advice)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} {path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error


def read_map(path: Path, what: str, limit: int, *, advice: str = "Check the path") -> dict[str, Any]:
    """The fields of a YAML file that is a map of settings.

    Args:
        path: the file.
        what: what the file is, for the error: "run file".
        limit: most bytes that are read.
        advice: what to do if it cannot be read; a sentence without its full stop.

    Raises:
        ConfigError: as `read_file` and `load_yaml`, or it is not a map.
    """
    fields = load_yaml(read_file(path, what, limit, advice=advice), f"{what} {path}")
    if not isinstance(fields, dict):
        raise ConfigError(f"{what} {path} is not a map of settings")
    return fields


def load_yaml(text: str | bytes, where: str) -> Any:
    """Plain values of YAML: None, booleans, integers, finite numbers, text, lists, and maps from text.

    The caller bounds the length of `text`; aliases and merge keys may be used within the bounds of this module.

    Args:
        text: the document; bytes are UTF-8 (or UTF-16 with a byte order mark, as YAML has it).
        where: names the document in messages.

    Raises:
        ConfigError: it is not YAML, or holds what no settings have; the message says what, and in which line.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            value = loader.construct_document(node)
        finally:
            loader.dispose()
        _check_text(value)
    except (yaml.YAMLError, _Unfit, ValueError, LookupError) as error:
        # A value with a tag that it does not fit, such as `!!bool x`, is a ValueError or LookupError of the loader's.
        raise ConfigError(f"{where} is not YAML of settings: {_place(error)}") from error
    return value


ADVICE = {
    "mapping values are not allowed": "put a text that has a colon in quotes",
    "found character '\\t'": "indent with spaces",
    "expected a single document": "write one document, without lines of ---",
    "found character '@'": "put it in quotes",
    "found character '`'": "put it in quotes",
}
"""What to do, by what the library finds wrong with YAML."""


def _place(error: Exception) -> str:
    """What is wrong with YAML, what to do, and where, in one line."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.reason} (position {error.position}); save it as UTF-8 text"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    words = ", ".join(part for part in (error.context, error.problem) if part)
    advice = "".join(f"; {todo}" for problem, todo in ADVICE.items() if problem in words)
    return f"{words}{advice} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def check_text(text: str, where: str) -> None:
    """Check that a text could stand in a file of settings.

    Raises:
        ConfigError: it is no Unicode, or has a NUL character.
    """
    try:
        _check_text(text)
    except _Unfit as error:
        raise ConfigError(f"{where} is no text of settings: {error}") from error


class _Unfit(Exception):
    """YAML that no settings have."""

    def __init__(self, node: yaml.Node | None, what: str) -> None:
        at = "" if node is None or node.start_mark is None else f" (line {node.start_mark.line + 1})"
        super().__init__(what + at)


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops at the bounds before anything has been built."""

    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._depth > MAX_DEPTH:
            raise _Unfit(parent, f"it is nested deeper than {MAX_DEPTH} levels")
        if self._nodes > MAX_VALUES:
            raise _Unfit(parent, f"it has more than {MAX_VALUES} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _check(root: yaml.Node) -> None:
    """Refuse what cannot be settings: by the graph of nodes, in which an alias costs nothing yet."""
    sizes: dict[int, int] = {}  # values below a node, aliases followed; 0 while it is being counted

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            raise _Unfit(node, "an alias stands inside of what it names")
        if known is not None:
            return known
        sizes[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        else:
            inner = []
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        if (inner and node.tag not in (_MAP, _LIST)) or (
            not inner and node.tag not in _SCALARS | {_MAP, _LIST}
        ):
            raise _Unfit(
                node, f"a value of type {node.tag.rpartition(':')[2]}; put it in quotes if it is text"
            )
        for part in inner:
            total += size(part)
            if total > MAX_VALUES:
                raise _Unfit(node, f"it has more than {MAX_VALUES} values where its aliases are followed")
        sizes[id(node)] = total
        return total

    size(root)


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (
            "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value",
        ):  # fmt: skip
            name = f" ({key.value[:64]!r})" if isinstance(key, yaml.ScalarNode) else ""
            raise _Unfit(key, f"a key that is no text{name}; put it in quotes")
        if key.value in seen:
            raise _Unfit(key, f"the key {key.value[:64]!r} stands twice in one map; leave one of them out")
        seen.add(key.value)


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_DIGITS:
        raise _Unfit(node, f"a number of {len(node.value)} characters; at most {MAX_NUMBER_DIGITS} are taken")


def _check_text(value: Any) -> None:
    """Refuse values that later code could not write, compare or pass on. Depth and size are bounded already."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Unfit(None, f"the text {value[:64]!r} has half of a surrogate pair") from None
        if "\0" in value:
            raise _Unfit(None, f"the text {value[:64]!r} has a NUL character")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _Unfit(None, f"{value} is no number; leave the setting out instead")
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise _Unfit(None, "an integer of more than 64 bits")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner)
