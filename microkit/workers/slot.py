"""One of the places for a worker: always taken by a process, whatever becomes of the one that has it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from logging import Logger
from typing import Final

from microkit.workers.asking import PATIENCE
from microkit.workers.merging import Whole
from microkit.workers.place import METRICS
from microkit.workers.process import WorkerProcess

NOT_STARTED: Final = (OSError, subprocess.SubprocessError)
"""What a process fails with that the system does not start: no memory, no descriptor, no process is left."""

_SLOW: Final = 60.0
"""Seconds after which it is said that a worker is not ready. It is not killed: it may bring a large database up to
date, and a service without workers may take as long as it likes."""

_QUICK: Final = 2.0
"""Seconds for an answer that somebody waits for, who has asked for those of all workers."""

_POLL: Final = 0.05
_LOOK: Final = 5.0
"""Seconds between two looks at a worker. What it has counted since the last one is lost with it when it is killed."""

_SHORTEST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_STEADY: Final = 30.0
"""Seconds after which a worker that ends has not failed to start."""

Start = Callable[[int], Awaitable[WorkerProcess]]
Told = Callable[[], None]


class Slot:
    """``timeout`` is how long a worker may answer nothing, 0 for ever; ``patience`` how long it may take to drain.
    ``restarted`` is told when one that had ended unasked is started again."""

    def __init__(
        self,
        number: int,
        start: Start,
        whole: Whole,
        logger: Logger,
        *,
        restarted: Told,
        timeout: float,
        patience: float,
    ) -> None:
        self.number = number
        self.restarts = 0
        self.current: WorkerProcess | None = None
        self._begin = start
        self._restarted = restarted
        self._whole = whole
        self._logger = logger
        self._timeout = timeout
        self._patience = patience
        self._here: dict[str, WorkerProcess] = {}
        self._changing = asyncio.Lock()
        self._replaced = asyncio.Event()
        self._ending = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether a worker is at work there."""
        worker = self.current
        return worker is not None and worker.running and worker.ready

    def has(self, process: str) -> bool:
        """Whether a worker of this name is here, at work or on its way out."""
        return process in self._here

    async def fill(self) -> int | None:
        """Starts a worker, and returns when it is ready; its exit code, if it ended before."""
        worker = self.current = await self._start()
        self._keeping = asyncio.create_task(self._keep())
        return None if await self._until_ready(worker) else await worker.wait()

    async def replace(self) -> bool:
        """Puts a new worker in the place of the one that is there, once it is ready; False if it never is.

        Raises:
            NOT_STARTED: there is no new process; the old one stays.
        """
        async with self._changing:
            if self._ending.is_set():
                return False
            old, worker = self.current, await self._start()
            if not await self._until_ready(worker) or self._ending.is_set():
                await self._over(worker)
                return False
            self.current = worker
            self._replaced.set()
        if old is not None:
            await self._drained(old)
        return True

    async def look(self) -> None:
        """Takes what the worker has counted so far."""
        if self.current is not None and self.current.ready:
            await self._look(self.current, _QUICK)

    def stay_empty(self) -> None:
        """From now on no other worker is put here, whatever becomes of the one that is here."""
        self._ending.set()

    def end(self) -> None:
        """Has the worker drain, and puts no other in its place."""
        self.stay_empty()
        if self.current is not None:
            self.current.signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Returns when the worker has drained, or was killed because it took too long."""
        while self._keeping is not None and not self._keeping.done():
            done, _ = await asyncio.wait({self._keeping}, timeout=self._patience)
            if not done and self.current is not None:
                self._give_up(self.current)

    async def kill(self) -> None:
        """Ends all that is here at once."""
        self._ending.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        for worker in list(self._here.values()):
            await self._over(worker)

    async def _start(self) -> WorkerProcess:
        worker = await self._begin(self.number)
        self._here[worker.name] = worker
        return worker

    async def _keep(self) -> None:
        pause = _SHORTEST_PAUSE
        while (worker := self.current) is not None:
            self._replaced.clear()
            began = time.monotonic()
            async with self._watched(worker):
                code = await self._ended_here(worker)
            if code is None:
                continue  # who has put another in its place sees to it
            async with self._changing:  # while another is being put in its place, it is not started again
                if worker is not self.current:
                    continue
                await self._over(worker)
            steady = worker.ready and time.monotonic() - began > _STEADY
            pause = _SHORTEST_PAUSE if steady else pause
            # One that was told to end by somebody else is replaced at once.
            if not await self._again(worker, code, 0.0 if steady and code in (0, -signal.SIGKILL) else pause):
                return
            pause = min(_LONGEST_PAUSE, pause * 2)

    async def _ended_here(self, worker: WorkerProcess) -> int | None:
        """Its exit code, when it has ended; ``None`` as soon as another is in its place."""
        ended, replaced = asyncio.create_task(worker.wait()), asyncio.create_task(self._replaced.wait())
        try:
            await asyncio.wait({ended, replaced}, return_when=asyncio.FIRST_COMPLETED)
            return ended.result() if ended.done() else None
        finally:
            ended.cancel()
            replaced.cancel()

    async def _again(self, gone: WorkerProcess, code: int, wait: float) -> bool:
        """Starts a new worker in the place of one that is gone, after a while; False if there is to be none."""
        if self._ending.is_set():
            return False
        when = f" in {wait:g} s" if wait else ""
        self._logger.warning("worker %d %s; a new one is started%s", self.number, how_ended(code), when)
        while True:
            await self._quiet(wait)
            async with self._changing:
                if self._ending.is_set():
                    return False
                if self.current is not gone:
                    return True
                try:
                    self.current = await self._start()
                except NOT_STARTED as error:
                    wait = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, wait * 2))
                    self._logger.warning(
                        "worker %d cannot be started (%s); it is tried again in %g s", self.number, error, wait
                    )
                    continue
            self.restarts += 1
            self._restarted()
            if self._ending.is_set():
                self.current.signal(signal.SIGTERM)
            return True

    async def _quiet(self, seconds: float) -> None:
        """Returns after so long, or when another worker is here, or none is wanted any more."""
        waiting = [asyncio.create_task(event.wait()) for event in (self._ending, self._replaced)]
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    @asynccontextmanager
    async def _watched(self, worker: WorkerProcess) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch(worker))
        try:
            yield
        finally:
            watching.cancel()

    async def _watch(self, worker: WorkerProcess) -> None:
        """Looks at a worker now and then, and kills one that does not answer."""
        if not worker.ready:
            await self._until_ready(worker)
        while worker.running:
            await self._look(worker, PATIENCE)
            if self._timeout and time.monotonic() - worker.heard > self._timeout:
                self._logger.error("worker %d answers nothing for %g s: it is killed", self.number, self._timeout)
                worker.signal(signal.SIGKILL)
                return
            await asyncio.sleep(_LOOK)

    async def _look(self, worker: WorkerProcess, within: float) -> None:
        worker.looks += 1
        look = worker.looks
        answer = await worker.ask("GET", METRICS, within=within)
        # Two may look at once: what was asked earlier and comes later is older.
        if answer is not None and answer.status == 200 and worker.running and look > worker.seen:
            worker.seen = look
            self._whole.told(worker.name, answer.body.decode(), worker=worker.number)

    async def _until_ready(self, worker: WorkerProcess) -> bool:
        """Whether it came to be ready; False when it has ended before, or no worker is wanted any more."""
        said = time.monotonic()
        while worker.running and not worker.ready and not self._ending.is_set():
            answer = await worker.ask("GET", "/health")
            worker.ready = answer is not None and (answer.document or {}).get("state") == "ready"
            if not worker.ready and time.monotonic() - said > _SLOW:
                said = time.monotonic()
                self._logger.warning("worker %d is not ready yet", self.number)
            await asyncio.sleep(0 if worker.ready else _POLL)
        return worker.running and worker.ready

    async def _drained(self, worker: WorkerProcess) -> None:
        worker.signal(signal.SIGTERM)
        async with self._watched(worker):
            try:
                await asyncio.wait_for(worker.wait(), self._patience)
            except TimeoutError:
                self._give_up(worker)
        await self._over(worker)

    def _give_up(self, worker: WorkerProcess) -> None:
        self._logger.error("worker %d is not drained after %g s: it is killed", self.number, self._patience)
        worker.signal(signal.SIGKILL)

    async def _over(self, worker: WorkerProcess) -> None:
        worker.signal(signal.SIGKILL)
        await worker.wait()
        self._here.pop(worker.name, None)
        self._whole.gone(worker.name)
        await worker.close()


def how_ended(code: int) -> str:
    """What an exit code says."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
