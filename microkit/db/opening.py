"""Why a database cannot be used, in the words of who has to mend it."""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError

_POSTGRESQL: Final = {
    "28P01": "the server refuses the password: see the user and the password in the URL",
    "28000": "the server lets this user not in: see the user in the URL, and the server's pg_hba.conf",
    "3D000": "the server has no database of this name: create it, or correct the URL",
    "42501": "this user may not do that there: grant it CONNECT, and the right to create tables",
    "53100": "the server's disk is full: make room there",
    "53300": "the server has no connection left: give it a higher max_connections, or the services smaller pools",
    "57P03": "the server is starting or ending: try again in a moment",
}
"""By the code of the PostgreSQL manual, appendix A."""

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
    code = getattr(cause, "sqlstate", None)
    known = _POSTGRESQL.get(str(code)) or _SQLITE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
    if known is not None:
        return known
    if isinstance(cause, TimeoutError):
        return "nothing answers there in time: see the host, the port and the network"
    if isinstance(cause, OSError) and cause.strerror:
        return f"it cannot be reached ({cause.strerror}): see the host, the port, and that the server runs"
    return " ".join(str(cause).split()) or type(cause).__name__
