"""The folder of a running system, and the note in it by which other commands find what ``microkit up`` started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError

DEFAULT_FOLDER: Final = Path(".microkit")


@dataclass(frozen=True, slots=True)
class Note:
    """What a running ``up`` says about itself. ``services`` are base URLs by name."""

    system: str
    pid: int
    console: str
    services: dict[str, str]
    admin: dict[str, str] = field(default_factory=dict)
    """Admin endpoints by instance; those that have any."""


@contextmanager
def sole_use(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the operating system lets go of it however the process ends.

    Raises:
        ConfigurationError: it cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "up.lock").open("a+")
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be written ({error.strerror}): choose another with --folder"
        ) from None
    with lock:
        if not _lock(lock.fileno()):
            raise ConfigurationError(
                f"Another `microkit up` runs in the folder {folder}: end it first, or choose another with --folder"
            )
        yield


def _lock(descriptor: int) -> bool:
    try:
        import fcntl  # noqa: PLC0415  POSIX only; elsewhere the ports are what keeps two apart
    except ModuleNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def noted(folder: Path, note: Note) -> Iterator[None]:
    """Leaves the note while the block runs."""
    path = folder / "up.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(note)))
    unfinished.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_note(folder: Path) -> Note:
    """The note of the ``up`` that runs in ``folder``.

    Raises:
        ConfigurationError: none runs there.
    """
    note = find_note(folder)
    if note is None:
        raise ConfigurationError(
            f"No system runs in the folder {folder}: start one with `microkit up`, in another terminal"
        )
    return note


def find_note(folder: Path) -> Note | None:
    """The note of the ``up`` that runs in ``folder``, if one does."""
    try:
        note = Note(**json.loads((folder / "up.json").read_bytes()))
        os.kill(note.pid, 0)
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    return note
