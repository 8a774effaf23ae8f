"""SIGKILL for a whole service: for the process that was started, and for the workers that it has started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def kill(pid: int) -> None:
    """Ends a process and its children as the end of their container does. Where the system does not say which those are
    (Linux does), they notice by themselves."""
    # Asked for before: afterwards they are nobody's children, and drain.
    for each in (pid, *_children(pid)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found
