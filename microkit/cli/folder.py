"""The folder of a running system, and the note in it by which other commands find what ``microkit up`` started."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings

DEFAULT_FOLDER: Final = Path(".microkit")

_ENDING: Final = 60.0
"""Seconds in which processes have drained whose parent was killed."""
_POLL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Note:
    """What a running ``up`` says about itself. ``services`` are base URLs by name."""

    system: str
    pid: int
    console: str
    services: dict[str, str]
    admin: dict[str, str] = field(default_factory=dict)
    """Admin endpoints by instance; those that have any."""
    databases: dict[str, str] = field(default_factory=dict, repr=False)
    """URLs by service, with their passwords, of databases that are no files in the folder."""


@contextmanager
def sole_use(folder: Path) -> Iterator[int]:
    """Holds the folder for this process, and for those that it hands the lock's descriptor on to; the operating system
    lets go of it however the last of them ends. Where an ``up`` was killed, those that it had started are waited for.

    Raises:
        ConfigurationError: it cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "up.lock").open("a+")  # who holds it writes its pid there
    except OSError as error:
        raise ConfigurationError(
            f"The folder {folder} cannot be written ({error.strerror}): choose another with --folder"
        ) from None
    with lock:
        until = time.monotonic() + _ENDING
        while not _lock(lock.fileno()):
            if not _was_killed(folder):
                raise ConfigurationError(
                    f"Another `microkit up` runs in the folder {folder}: end it first, or choose another with --folder"
                )
            if time.monotonic() > until:
                raise ConfigurationError(
                    f"Processes of a `microkit up` that was killed still run in the folder {folder}: end them first "
                    f"(`fuser {folder / 'up.lock'}` names them), or choose another with --folder"
                )
            time.sleep(_POLL)
        with suppress(OSError):  # a full disk: then nobody knows, and nobody waits
            lock.truncate(0)
            os.write(lock.fileno(), str(os.getpid()).encode())  # nothing is kept that could be tried again at its end
        yield lock.fileno()


def _was_killed(folder: Path) -> bool:
    """Whether the ``up`` that took the lock is gone: then who holds it was started by it, and is ending."""
    try:
        os.kill(int((folder / "up.lock").read_text()), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


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


def server_databases(settings: Mapping[str, ServiceSettings]) -> dict[str, str]:
    """By service, the URLs of databases on a server; what is a file is found in the folder."""
    urls = {name: each.database_url.get_secret_value() for name, each in settings.items()}
    return {name: url for name, url in urls.items() if not url.startswith("sqlite")}


@contextmanager
def noted(folder: Path, note: Note) -> Iterator[None]:
    """Leaves the note while the block runs."""
    path = folder / "up.json"
    unfinished = path.with_suffix(".new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(asdict(note), file)
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
