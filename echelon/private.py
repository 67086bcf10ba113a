"""Files and folders that their owner alone may read: what holds updates, optimiser state, keys or data.

Modes are set as they should be, whatever the umask: 0600 for files, 0700 for folders. The process gives them to what it
makes, and takes away what is too much from what it finds, so a folder of an earlier version is closed when it is next
used. What belongs to another user is left as it is: only its owner may change it.

SQLite gives the files that it makes beside a database (`-wal`, `-shm`, `-journal`) the database's own mode.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from pathlib import Path

from echelon.errors import ConfigError

FILE, FOLDER = 0o600, 0o700
SIDECARS = ("-wal", "-shm", "-journal")
"""What SQLite adds to a database's name."""


def is_full(error: BaseException) -> bool:
    """Whether a file failed since there is no room on its disk, or in its owner's quota."""
    return _failed_with(error, (errno.ENOSPC, errno.EDQUOT), sqlite3.SQLITE_FULL)


def may_pass(error: BaseException) -> bool:
    """Whether what a file failed with may go well later: no room, or a disk that fails."""
    return is_full(error) or _failed_with(error, (errno.EIO,), sqlite3.SQLITE_IOERR)


def _failed_with(error: BaseException, numbers: tuple[int, ...], kind: int) -> bool:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        return code & 0xFF == kind  # without what distinguishes cases of the kind
    return isinstance(error, OSError) and error.errno in numbers


def private_folder(path: Path) -> None:
    """Make a folder for its owner alone, and every folder above it that is missing; close one that is there.

    Raises:
        OSError: it cannot be made.
        ConfigError: it is one that everybody may write to, such as /tmp.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir(FOLDER)
            folder.chmod(FOLDER)
        except FileExistsError:
            continue  # another process was first; it is closed below
    _close(path, path.stat())


def close_tree(path: Path) -> None:
    """Close a folder that is there and everything in it. Links are not followed.

    Raises:
        OSError: a folder cannot be read.
        ConfigError: it is one that everybody may write to, such as /tmp.
    """
    _close(path, path.stat())
    for where, folders, files in os.walk(path, onerror=_raise):
        for name in (*folders, *files):
            close_file(Path(where, name))


def close_file(path: Path) -> None:
    """Close a file, if it is there. It is not opened: that could cost SQLite its locks."""
    try:
        _close(path, path.lstat())
    except FileNotFoundError:
        return  # or it is gone meanwhile, as what SQLite keeps beside a database comes and goes


def private_database(path: Path) -> None:
    """See to it that a SQLite file, there or not yet, and what is beside it are for their owner alone.

    An existing file is not opened: closing it again would drop the locks that this process has on it.

    Raises:
        OSError: it cannot be made.
    """
    try:
        os.close(_create(path))
    except FileExistsError:
        close_file(path)
    for suffix in SIDECARS:
        close_file(path.with_name(path.name + suffix))


def write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read; see `write_whole`.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(path, content, mode=FILE)


def write_whole(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file, or another content of one: whoever reads it finds the old content or the new one, never a part.

    It is written beside its place, brought to the disk, and moved there. Where that fails, as on a full disk, what was
    there stays, and nothing is left beside it.

    Args:
        path: the file.
        content: all of it.
        mode: of the file; None: as a new file of this process would have it.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        handle = os.open(
            part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666 if mode is None else mode
        )
        with os.fdopen(handle, "wb") as file:
            if mode is not None and stat.S_IMODE(os.fstat(file.fileno()).st_mode) != mode:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def create_private(path: Path, content: bytes) -> None:
    """Write a new file that its owner alone may read, and make sure that it is on the disk.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    with os.fdopen(_create(path), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append_private(path: Path) -> int:
    """A descriptor that appends to a file which its owner alone may read.

    Raises:
        OSError: it cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE)
    close_file(path)
    return handle


def _create(path: Path) -> int:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE)
    try:
        os.fchmod(handle, FILE)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _close(path: Path, status: os.stat_result) -> None:
    folder = stat.S_ISDIR(status.st_mode)
    wanted = FOLDER if folder else FILE
    if status.st_uid != os.geteuid() or not (folder or stat.S_ISREG(status.st_mode)):
        return
    if folder and status.st_mode & stat.S_ISVTX:
        raise ConfigError(
            f"{path} is a folder that everybody may write to: name one of its own, such as {path}/echelon"
        )
    if stat.S_IMODE(status.st_mode) != wanted:
        path.chmod(wanted)


def _raise(error: OSError) -> None:
    raise error
