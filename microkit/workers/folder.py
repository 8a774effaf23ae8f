"""The folder of the sockets at which an instance's processes ask each other."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError

_PREFIX: Final = "microkit-"
_LOCK: Final = "lock"


@contextmanager
def socket_folder() -> Iterator[Path]:
    """One of our own, which only our user reads. Those go, too, whose owners were killed.

    Raises:
        ConfigurationError: none can be made.
    """
    _sweep()
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        held = (folder / "new").open("wb")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "new").rename(folder / _LOCK)  # so that nobody finds it before it is held
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise ConfigurationError(
            f"no folder can be made for the sockets of the workers ({error}): set TMPDIR to one that can be written"
        ) from None
    with held:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """A lock that can be had is that of a process which is gone, whatever process has its number now."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError), lock.open("rb") as left:
            if os.fstat(left.fileno()).st_uid == os.getuid():
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
