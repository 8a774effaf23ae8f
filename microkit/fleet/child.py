"""One copy of a service in a process of its own, started again when it ends unasked."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import aiohttp

from microkit.errors import ConfigurationError
from microkit.fleet.copies import Copy
from microkit.fleet.killing import kill
from microkit.servers.process import ends_with_parent

Say = Callable[[str, str], None]
"""Told the name of a process and a line of its log, without the line break."""

_READY: Final = "/health/ready"
_POLL: Final = 0.05
_AT_ONCE: Final = 3.0
_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_STEADY: Final = 30.0
"""Seconds after which a process that ends has not failed to start."""
_LINE_LIMIT: Final = 256 * 1024


class Child:
    """Supervises the process of ``copy``. ``system`` is what the process loads: module and variable.
    ``inherited`` are descriptors that it gets."""

    def __init__(self, copy: Copy, system: str, say: Say, inherited: tuple[int, ...] = ()) -> None:
        self.copy = copy
        self.restarts = 0
        """How often it was started again."""
        self._system = system
        self._say = say
        self._inherited = inherited
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._away: float | None = None
        self._last: deque[str] = deque(maxlen=5)

    @property
    def pid(self) -> int | None:
        """Of its process, while there is one."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    async def start(self, session: aiohttp.ClientSession, within: float) -> None:
        """Starts the process; returns when the service is ready.

        Raises:
            ConfigurationError: it ended, or was not ready ``within`` so many seconds; with the last lines of its log.
        """
        reading = await self._spawn()
        until = time.monotonic() + within
        while not await is_ready(session, self.copy.url):
            ended = self._process is None or self._process.returncode is not None
            if ended or time.monotonic() > until:
                await self._end(signal.SIGKILL, 0)
                await reading
                last = " / ".join(self._last)[-2000:]
                raise ConfigurationError(f"{self.copy.name} does not start: {last or 'it said nothing'}")
            await asyncio.sleep(_POLL)
        self._supervisor = asyncio.create_task(self._supervise(reading))

    def end(self, by: signal.Signals, away: float = 0.0) -> int | None:
        """Sends its process a signal; a new one is started ``away`` seconds after it has ended. Its pid, ``None`` where
        there is none."""
        pid = self.pid
        if pid is not None:
            self._away = away
            _send(pid, by)
        return pid

    async def stop(self, within: float) -> None:
        """Has it drain and end; what is not over ``within`` so many seconds is killed."""
        self._stopping.set()
        await self._end(signal.SIGTERM, within)
        if self._supervisor is not None:
            await self._supervisor

    async def stop_now(self) -> None:
        """Ends it with what is under way: by the signal that ends a process that drains at once, else by SIGKILL."""
        self._stopping.set()
        await self._end(signal.SIGTERM, _AT_ONCE)
        if self._supervisor is not None:
            await self._supervisor

    async def _spawn(self) -> asyncio.Task[None]:
        self._last.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "microkit.cli", "run", self.copy.service, "--system", self._system,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.copy.environment},
            limit=_LINE_LIMIT,
            pass_fds=self._inherited,
            start_new_session=True,  # ^C in the terminal is for whoever started it
            preexec_fn=ends_with_parent(signal.SIGTERM),
        )  # fmt: skip
        return asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  it has a pipe
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # longer than the limit: what was read of it is gone, the rest follows
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self._last.append(line)
            self._say(self.copy.name, line)

    async def _supervise(self, reading: asyncio.Task[None]) -> None:
        pause = _SHORTEST_PAUSE
        while True:
            assert self._process is not None  # noqa: S101  it was started
            began = time.monotonic()
            code = await self._process.wait()
            await reading
            if self._stopping.is_set():
                return
            # One that was told to end, here or by somebody else, is replaced at once: that is a step of a rolling
            # restart. One that ends again and again is not.
            steady = time.monotonic() - began > _STEADY
            pause = _SHORTEST_PAUSE if steady else pause
            asked = code in (0, -signal.SIGKILL)
            away, self._away = self._away, None
            if asked and away is not None:
                wait = away
            else:
                wait = 0.0 if asked and steady else max(away or 0.0, pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            self._say(self.copy.name, f"the process {how}; a new one is started{f' in {wait:g} s' if wait else ''}")
            if (spawned := await self._again(wait)) is None:
                return
            reading = spawned

    async def _again(self, wait: float) -> asyncio.Task[None] | None:
        """A new process after so many seconds, and who reads what it says; ``None`` when there is to be none."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
            if self._stopping.is_set():
                return None
            try:
                reading = await self._spawn()
            except (OSError, subprocess.SubprocessError) as error:
                wait = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, wait * 2))
                self._say(self.copy.name, f"no process can be started ({error}); it is tried again in {wait:g} s")
                continue
            self.restarts += 1
            if self._stopping.is_set():  # it was told so while this one was made, which has done nothing yet
                await self._end(signal.SIGKILL, 0)
            return reading

    async def _end(self, by: signal.Signals, within: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        _send(process.pid, by)
        try:
            await asyncio.wait_for(process.wait(), within)
        except TimeoutError:
            kill(process.pid)
            await process.wait()


def _send(pid: int, number: signal.Signals) -> None:
    """To workers of its own the process passes on what it is told; SIGKILL nobody is told."""
    if number is signal.SIGKILL:
        kill(pid)
    else:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether a service says that it is ready."""
    try:
        async with session.get(url + _READY) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
