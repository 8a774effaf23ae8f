"""Why a database cannot be used, in the words of who has to mend it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError

from microkit.errors import ConfigurationError, Problem

_POSTGRESQL: Final = {
    "28P01": "the server refuses this user with this password; see both in the URL",
    "28000": "the server lets this user not in: see the user in the URL, and the server's pg_hba.conf",
    "3D000": "the server has no database of this name: create it, or correct the URL",
    "42501": "this user may not do that there: grant it CONNECT, and the right to create tables",
    "53100": "the server's disk is full: make room there",
    "53300": "the server has no connection left: give it a higher max_connections, or the services smaller pools",
    "57P03": "the server is starting or ending: try again in a moment",
}
"""By the code of the PostgreSQL manual, appendix A."""

_LATER: Final = frozenset({"53300", "57P03"})
"""Those that may be over in a moment."""

ROOM: Final = 64 * 1024 * 1024
"""Bytes that should be free for a file of SQLite; with fewer than ``LEAST`` nothing is begun."""
LEAST: Final = 256 * 1024

_SQLITE: Final = {
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: see that its folder is there and may be written",
    sqlite3.SQLITE_READONLY: "the file or its folder is read-only: let this user write there, or choose another place",
    sqlite3.SQLITE_PERM: "this user may not open the file",
    sqlite3.SQLITE_FULL: "the disk is full: make room, or choose another place",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database: see the path in the URL",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a copy",
    sqlite3.SQLITE_IOERR: "the file cannot be read or written: see the disk",
}


def said_of_opening(error: BaseException) -> str:
    """The cause and what to do, in one sentence without a full stop; where it is not known, what the database said."""
    cause = (getattr(error, "orig", None) or error) if isinstance(error, DBAPIError) else error
    known = _known(cause)
    if known is not None:
        return known
    if isinstance(cause, TimeoutError):
        return "nothing answers there in time: see the host, the port and the network"
    if isinstance(cause, OSError) and cause.strerror:
        return f"it cannot be reached ({cause.strerror}): see the host, the port, and that the server runs"
    return " ".join(str(cause).split()) or type(cause).__name__


def is_over_soon(error: BaseException) -> bool:
    """Whether the server said that it has no connection left, or is starting."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) in _LATER


def needs_mending(error: BaseException) -> bool:
    """Whether trying again is of no use until a person has done something."""
    cause = getattr(error, "orig", None)
    return cause is not None and _known(cause) is not None and not is_over_soon(error)


@contextmanager
def preparing(where: str) -> Iterator[None]:
    """Says in one sentence what keeps the database at ``where`` from being brought up to date, where it is known.

    Raises:
        ConfigurationError: its disk is full, it is read-only, this user may not change it.
    """
    try:
        yield
    except (DBAPIError, Problem) as error:
        cause = error.__cause__ if isinstance(error, Problem) else error
        if cause is None or not needs_mending(cause):
            raise
        raise ConfigurationError(f"the database {where} cannot be prepared: {said_of_opening(cause)}") from error


def unwritable(file: Path, room: int) -> str | None:
    """Why SQLite cannot write at ``file``, which need not be there, or has fewer than ``room`` bytes left."""
    folder = next(each for each in (file.parent, *file.absolute().parent.parents) if each.exists())
    if not folder.is_dir():
        return f"{folder} is no folder: name another file in the URL"
    if not os.access(folder, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        return f"{file} cannot be written: let this user write in {folder}, or name another file in the URL"
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < room:
        left = disk.free // 1024 // 1024
        return f"the disk of {folder} is full ({left} MiB left): make room, or name another file in the URL"
    return None


def _known(cause: BaseException) -> str | None:
    code = getattr(cause, "sqlstate", None)
    if getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
        return _SQLITE[sqlite3.SQLITE_FULL]
    return _POSTGRESQL.get(str(code)) or _SQLITE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
