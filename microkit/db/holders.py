"""Who has the pool's connections: a table that costs some microseconds a row, and tells the rest when it is asked.

Kept at the taking are the task, its span, and the place in the program: of all frames from the statement outwards the
first that is neither ours nor SQLAlchemy's. What the task does now is read from its coroutine when somebody asks.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import sqlalchemy
from greenlet import getcurrent  # type: ignore[import-untyped]  # it ships no types
from opentelemetry import trace

_HOUSE: Final = str(Path(__file__).parent.parent) + "/"
_FLOOR: Final = str(Path(__file__).parent) + "/"
_ALCHEMY: Final = str(Path(sqlalchemy.__file__).parent) + "/"
_LIBRARY: Final = str(Path(asyncio.__file__).parent.parent) + "/"
_CARRIERS: Final = frozenset({"anyio", "greenlet", "starlette", "uvicorn", "uvloop", "_pytest", "pluggy"})
"""Installed packages that only carry a call to whom it concerns."""
_MOST_FRAMES: Final = 64


@dataclass(frozen=True, slots=True)
class HolderView:
    """Who has a connection. ``work`` is the span's name (the route, the saga's step, the event), where there is one.

    ``taken_at`` is ``file:line``, ``function`` whose line that is; ``seconds`` is for how long; ``now`` is where the
    task is at present, outermost first.
    """

    pool: str
    seconds: float
    work: str | None
    task: str
    function: str
    taken_at: str
    now: tuple[str, ...]


class Holder:
    """One connection that is lent. ``since`` is a reading of ``time.monotonic()``."""

    __slots__ = ("code", "line", "reported", "since", "span", "task")

    def __init__(self, since: float) -> None:
        self.since = since
        self.task = asyncio.current_task()
        self.span = trace.get_current_span()
        self.code, self.line = _taker()
        self.reported = False

    def view(self, pool: str) -> HolderView:
        """As people see it."""
        task = self.task
        return HolderView(
            pool=pool,
            seconds=round(time.monotonic() - self.since, 3),
            work=getattr(self.span, "name", None),
            task=task.get_name() if task is not None else "",
            function=self.code.co_qualname if self.code is not None else "",
            taken_at=f"{_short(self.code.co_filename)}:{self.line}" if self.code is not None else "",
            now=tuple(stack_of(task)) if task is not None else (),
        )


class Holders:
    """The connections of one pool that are lent."""

    __slots__ = ("_held", "pool")

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self._held: set[Holder] = set()

    def __iter__(self) -> Iterator[Holder]:
        return iter(tuple(self._held))

    def take(self, since: float) -> Holder:
        """The current task has one from now on; called inside SQLAlchemy's greenlet."""
        holder = Holder(since)
        self._held.add(holder)
        return holder

    def give_back(self, holder: Holder) -> None:
        """It has it no more."""
        self._held.discard(holder)

    def views(self) -> list[HolderView]:
        """The table, longest first."""
        return [holder.view(self.pool) for holder in sorted(self._held, key=lambda each: each.since)]


def stack_of(task: asyncio.Task[Any]) -> Iterator[str]:
    """Where a task waits: ``file:line in function`` from the outermost coroutine to the innermost.

    ``Task.get_stack()`` knows the outermost only.
    """
    waits: Any = task.get_coro()
    for _ in range(_MOST_FRAMES):
        frame = _of(waits, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        waits = _of(waits, "cr_await", "gi_yieldfrom", "ag_await")
        if waits is None:
            return


def _of(coroutine: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(coroutine, name, None)) is not None), None)


def _taker() -> tuple[CodeType | None, int]:
    """The place of the first frame outside; of none, as with our own background work, the first above this floor."""
    parent = getcurrent().parent  # SQLAlchemy runs the statement in a greenlet: who asked for it is in the one before
    frame: FrameType | None = parent.gr_frame if parent is not None else None
    if frame is None:
        frame = sys._getframe(1)  # noqa: SLF001  the one way to it
    ours: FrameType | None = None
    for _ in range(_MOST_FRAMES):
        if frame is None:
            break
        kind = _kind(frame.f_code.co_filename)
        if kind == _FOREIGN:
            return frame.f_code, frame.f_lineno
        if kind == _OURS and ours is None:
            ours = frame
        frame = frame.f_back
    return (ours.f_code, ours.f_lineno) if ours is not None else (None, 0)


_INSIDE: Final = 0
_OURS: Final = 1
_FOREIGN: Final = 2


@lru_cache(maxsize=4096)
def _kind(file: str) -> int:
    if file.startswith((_FLOOR, _ALCHEMY, "<")):
        return _INSIDE
    if file.startswith(_HOUSE):
        return _OURS
    _, installed, package = file.partition("/site-packages/")
    if installed:  # a service is often one, too
        return _INSIDE if package.partition("/")[0] in _CARRIERS else _FOREIGN
    return _INSIDE if file.startswith(_LIBRARY) else _FOREIGN


@lru_cache(maxsize=4096)
def _short(file: str) -> str:
    """A path as it is written in the project: below the folder of the process, or below the packages."""
    for root in (_HOUSE.removesuffix("microkit/"), str(Path.cwd()) + "/"):
        if file.startswith(root):
            return file.removeprefix(root)
    return file.partition("site-packages/")[2] or file
