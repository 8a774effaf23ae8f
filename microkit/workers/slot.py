"""One of the places for a worker: always taken by a process, whatever becomes of the one that has it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from logging import Logger
from typing import Final

from microkit.workers.merging import Whole
from microkit.workers.place import METRICS
from microkit.workers.process import WorkerProcess

STARTING: Final = 60.0
"""Seconds that a worker may take until it is ready."""

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
        self._here: set[str] = set()
        self._changing = asyncio.Lock()
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
        """Puts a new worker in the place of the one that is there, once it is ready; False if it never is."""
        async with self._changing:
            old, worker = self.current, await self._start()
            try:
                ready = await self._until_ready(worker)
            except asyncio.CancelledError:
                worker.signal(signal.SIGKILL)
                raise
            if not ready or self._ending.is_set():
                await self._over(worker)
                return False
            self.current = worker
        if old is not None:
            await self._drained(old)
        return True

    async def look(self) -> None:
        """Takes what the worker has counted so far."""
        if self.current is not None and self.current.ready:
            await self._look(self.current)

    def end(self) -> None:
        """Has the worker drain, and puts no other in its place."""
        self._ending.set()
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
        if self.current is not None:
            await self._over(self.current)

    async def _start(self) -> WorkerProcess:
        worker = await self._begin(self.number)
        self._here.add(worker.name)
        return worker

    async def _keep(self) -> None:
        pause = _SHORTEST_PAUSE
        while (worker := self.current) is not None:
            began = time.monotonic()
            looking = asyncio.create_task(self._watch(worker))
            try:
                code = await worker.wait()
            finally:
                looking.cancel()
            async with self._changing:  # while another is being put in its place, it is not started again
                await self._over(worker)
                if worker is not self.current:
                    continue
            steady = worker.ready and time.monotonic() - began > _STEADY
            pause = _SHORTEST_PAUSE if steady or code == 0 else min(_LONGEST_PAUSE, pause * 2)
            if not await self._again(code, 0.0 if worker.ready and code in (0, -signal.SIGKILL) else pause):
                return

    async def _again(self, code: int, wait: float) -> bool:
        """Starts a new worker, after a while; False if there is to be none."""
        if self._ending.is_set():
            return False
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        when = f" in {wait:g} s" if wait else ""
        self._logger.warning("worker %d %s; a new one is started%s", self.number, how, when)
        try:
            await asyncio.wait_for(self._ending.wait(), wait)
        except TimeoutError:
            async with self._changing:
                self.current = await self._start()
            self.restarts += 1
            self._restarted()
            if self._ending.is_set():
                self.current.signal(signal.SIGTERM)
            return True
        return False

    async def _watch(self, worker: WorkerProcess) -> None:
        """Looks at a worker now and then, and kills one that does not answer."""
        await self._until_ready(worker)
        while worker.running:
            await self._look(worker)
            if self._timeout and time.monotonic() - worker.heard > self._timeout:
                self._logger.error("worker %d answers nothing for %g s: it is killed", self.number, self._timeout)
                worker.signal(signal.SIGKILL)
                return
            await asyncio.sleep(_LOOK)

    async def _look(self, worker: WorkerProcess) -> None:
        answer = await worker.ask("GET", METRICS)
        if answer is not None and answer.status == 200 and worker.running:
            self._whole.told(worker.name, answer.body.decode(), worker=worker.number)

    async def _until_ready(self, worker: WorkerProcess) -> bool:
        """Whether it came to be ready, or ended before; one that takes too long is killed."""
        until = time.monotonic() + STARTING
        while worker.running and not worker.ready and not self._ending.is_set():
            answer = await worker.ask("GET", "/health")
            worker.ready = answer is not None and (answer.document or {}).get("state") == "ready"
            if not worker.ready and time.monotonic() > until:
                self._logger.error("worker %d is not ready after %g s: it is killed", self.number, STARTING)
                worker.signal(signal.SIGKILL)
                return False
            await asyncio.sleep(0 if worker.ready else _POLL)
        return worker.running and worker.ready

    async def _drained(self, worker: WorkerProcess) -> None:
        worker.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(worker.wait(), self._patience)
        except TimeoutError:
            self._give_up(worker)
        except asyncio.CancelledError:
            worker.signal(signal.SIGKILL)
            raise
        await self._over(worker)

    def _give_up(self, worker: WorkerProcess) -> None:
        self._logger.error("worker %d is not drained after %g s: it is killed", self.number, self._patience)
        worker.signal(signal.SIGKILL)

    async def _over(self, worker: WorkerProcess) -> None:
        worker.signal(signal.SIGKILL)
        await worker.wait()
        self._here.discard(worker.name)
        self._whole.gone(worker.name)
        await worker.close()
