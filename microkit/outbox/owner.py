"""Who holds a lease, named so that a neighbour on the same machine can see whether the holder still lives."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

_PROC = Path("/proc")


def new_owner() -> str:
    """A name that no other owner ever had: machine, process, and a random part."""
    pid = os.getpid()
    return f"{_place()}:{pid}:{_started(pid)}:{uuid4().hex}"


def is_gone(owner: str) -> bool:
    """Whether the process of ``owner`` is known to have ended.

    Known means: it ran in this process-id namespace of this boot of this machine, and no such process lives there now.
    In all other cases, and where there is no ``/proc``, the lease has to run out.
    """
    place, _, rest = owner.partition(":")
    pid, _, rest = rest.partition(":")
    started, _, _ = rest.partition(":")
    if not place or place != _place() or not pid.isdigit() or not started:
        return False
    return _started(int(pid)) != started and not _hidden(int(pid))


def _place() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""
    return f"{boot}/{namespace.removeprefix('pid:[').removesuffix(']')}"


def _started(pid: int) -> str:
    """The start time of a living process in clock ticks since boot; ``""`` of one that has ended (proc(5))."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _hidden(pid: int) -> bool:
    """Whether the process lives and may not be looked at (``/proc`` mounted with ``hidepid``)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return not (_PROC / str(pid)).exists()
