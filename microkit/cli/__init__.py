"""The ``microkit`` command."""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Final, TextIO

_OF_THE_MACHINE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO}
)
"""Errors that say nothing against the program: no room, no right, no more files."""


def main() -> None:
    """Runs the command.

    What goes wrong on purpose is one sentence on stderr and exit code 1, never a stack trace; with ``--json`` it is a
    document on stdout as well, so that a script always finds one there. A reader that has gone ends it silently.
    """
    from microkit.cli.app import app  # noqa: PLC0415  so that `import microkit.cli` costs nothing
    from microkit.errors import MicrokitError  # noqa: PLC0415

    sys.stdout, sys.stderr = _usable(sys.stdout), _usable(sys.stderr)
    try:
        try:
            app(prog_name="microkit")
        finally:
            sys.stdout.flush()
    except MicrokitError as error:
        _fail(str(error))
    except BrokenPipeError:
        _mute()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror}: see that there is room, and that this user may write there")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(sentence: str) -> None:
    from microkit.redaction import redact_text  # noqa: PLC0415  as above

    sentence = redact_text(sentence)
    try:
        if "--json" in sys.argv:
            sys.stdout.write(json.dumps({"ok": False, "error": sentence}) + "\n")
            sys.stdout.flush()
    except OSError:
        _mute()
    sys.stderr.write(f"microkit: {sentence}\n")
    _mute()
    sys.exit(1)


def _usable(stream: TextIO | None) -> TextIO:
    """The stream, which writes what its encoding lacks as escapes; nowhere, if it was closed before we began."""
    if stream is None:
        return open(os.devnull, "w")
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return stream


def _mute() -> None:
    """So that the interpreter, which flushes at its end, does not complain of what could not be written."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
