"""Processes forked from one which has imported everything and started nothing: real ones that begin in a moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

_told: Final = asyncio.Event()
"""Set by SIGTERM, in a process that waits for it."""


def forked(main: Coroutine[Any, Any, None], before: Callable[[], None] = lambda: None) -> int:
    """Runs ``main`` in a process of its own and returns its id.

    SIGTERM is held back there until ``main`` comes to :func:`told_to_end`: it would end a process that starts still.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        main.close()
        return child
    status = 1
    try:
        random.seed()
        before()
        asyncio.run(main)
        status = 0
    except BaseException:  # noqa: BLE001  the process ends here, and must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


async def told_to_end() -> None:
    """Waits for SIGTERM, which may have come before."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _told.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    await _told.wait()


def ended(child: int) -> int:
    """Waits for a process; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def succeed(main: Coroutine[Any, Any, None], what: str) -> None:
    """Runs ``main`` in a process of its own to its end. This one ends with it, if it fails."""
    if ended(forked(main)) != 0:
        raise SystemExit(f"{what} failed")


@contextmanager
def running(children: list[int]) -> Iterator[None]:
    """Ends whatever of ``children`` is left."""
    try:
        yield
    finally:
        for child in children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
