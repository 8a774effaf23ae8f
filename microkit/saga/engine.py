"""The saga engine of one service instance: claims what is due, keeps the leases, carries sagas on until they end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from microkit.context import deadline_within
from microkit.db import Database
from microkit.errors import ConfigurationError, Unavailable
from microkit.saga import leases
from microkit.saga.binding import bind_sagas
from microkit.saga.definition import Saga
from microkit.saga.enrol import SIGNAL
from microkit.saga.leases import Turn
from microkit.saga.metrics import SagaMetrics
from microkit.saga.runner import Runner
from microkit.saga.store import Held
from microkit.saga.tables import Status
from microkit.saga.turns import Turns
from microkit.saga.writer import TransitionWriter
from microkit.telemetry import Telemetry

_STRANGER = (
    "its definition is gone or was changed while it was running: give the changed one another version, and "
    "offer the one it began with beside it; then it goes on"
)
# Seconds between two looks at how many sagas are open, for the gauges, and at those that nobody knows.
_SURVEY = 30.0
# A batch is claimed when this share of the places is free, so that a busy engine does not claim one by one.
_BATCH = 4
_BATCH_PATIENCE = 0.01
# A saga that is due and cannot be claimed is locked by another engine's claim.
_SHORTEST_WAIT = 0.02
# Seconds for a claim. It is what a batch of transitions may take, so that their connections keep one time-out.
_LONGEST_CLAIM = 5.0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """``ok``: the loops turn and the database answers. ``stuck`` sagas wait for an operator: no fault of the engine."""

    ok: bool
    in_flight: int
    stuck: int
    error: str | None


@dataclass(slots=True)
class _Run:
    held: Held
    task: asyncio.Task[None]
    until: float
    """When the lease has certainly not run out yet, a reading of ``time.monotonic()``."""


class SagaEngine:
    """Runs the sagas of one service in one process; any number of engines may work on one database.

    ``resources`` are what steps may ask for by type, beside ``Transaction``, ``StepContext`` and the state. ``lease``
    is how many seconds a saga waits after its process has died, ``concurrency`` how many are carried on at once, and
    ``poll`` how often an idle engine looks for what other processes have started. A saga whose definition nobody
    offers is parked after ``stranger_after`` seconds (ten leases).

    Raises:
        DefinitionError: a step asks for something that is not among the resources.
        ConfigurationError: the lease or the concurrency make no sense.
    """

    def __init__(
        self,
        database: Database,
        telemetry: Telemetry,
        sagas: Sequence[Saga[Any]],
        resources: Mapping[Any, object],
        *,
        lease: float = 10.0,
        concurrency: int = 32,
        poll: float = 1.0,
        stranger_after: float | None = None,
    ) -> None:
        if not 0 < lease < float("inf") or concurrency < 1 or not 0 < poll < float("inf"):
            raise ConfigurationError(f"saga engine: lease={lease}, concurrency={concurrency}, poll={poll}")
        self.owner = uuid4().hex
        self._database = database
        self._lease = lease
        self._concurrency = concurrency
        self._poll = poll
        self._stranger_after = 10 * lease if stranger_after is None else stranger_after
        self._bound = bind_sagas(sagas, {Database: database, Telemetry: telemetry, **resources})
        self._known = list(self._bound)
        self._limits = {key: bound.saga.limits.concurrency for key, bound in self._bound.items()}
        self._fair = Turns({key: bound.saga.name for key, bound in self._bound.items()}, concurrency, self._limits)
        self._slow = min(1.0, lease / 10)
        self._metrics = SagaMetrics(telemetry)
        self._metrics.in_flight.set_function(lambda: len(self._runs))
        for bound in self._bound.values():
            self._metrics.known(bound.saga.name)
        self._log = telemetry.logger.getChild("saga")
        self._writer = TransitionWriter(database)
        self._runner = Runner(
            database, telemetry, self._bound, self._metrics, self._writer, owner=self.owner, due_in=self._due_in
        )
        self._runs: dict[UUID, _Run] = {}
        self._unbegun: list[UUID] = []
        self._fruitless = 0
        self._freed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._error: str | None = None
        self._stuck = 0
        self._started_at = 0.0
        self._surveyed_at = float("-inf")

    async def start(self) -> None:
        """Begins to claim. Sagas that another process left are taken up when their leases run out."""
        if self._bound:
            self._started_at = time.monotonic()
            self._loops = [asyncio.create_task(self._claim_forever()), asyncio.create_task(self._beat_forever())]

    async def stop(self, timeout: float = 20.0) -> None:  # noqa: ASYNC109  how long to wait in order, before cutting off
        """Lets every saga finish the attempt under way, up to ``timeout`` seconds, and gives the leases back."""
        if not self._loops:
            return
        claiming, beating = self._loops
        self._loops = []
        self._runner.stopping = True
        self._database.signal(SIGNAL).set()
        self._freed.set()
        await _end(claiming, after=1.0)
        await _end(*(run.task for run in self._runs.values()), after=timeout)
        await self._writer.close()
        await _end(beating)
        with suppress(Exception):  # what is not given back is taken up when its lease runs out
            async with asyncio.timeout(5):
                await self._database.run(lambda tx: leases.release(tx, owner=self.owner, unbegun=self._unbegun))

    def health(self) -> EngineHealth:
        dead = any(loop.done() for loop in self._loops)
        error = "stalled" if dead else self._error
        return EngineHealth(error is None, len(self._runs), self._stuck, error)

    async def _claim_forever(self) -> None:
        full, pause = False, 0.1
        while not self._runner.stopping:
            try:
                free = await self._places(full)
                claimed = await self._claim(free)
                full = claimed == min(free, leases.MOST)
                self._fruitless = 0 if claimed else self._fruitless + 1
                if not full:
                    await self._until_due(nothing=not claimed)
            except Exception as error:  # noqa: BLE001  the database is away: it is asked again
                self._failed("claim", error)
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311  jitter, no secret
                pause = min(5.0, pause * 2)
            else:
                self._error, pause = None, 0.1

    async def _places(self, full: bool) -> int:
        """Waits for a free place; after a full batch, for a moment, for several. And while the database takes long to
        write what the sagas under way have come to, no more are begun."""
        await self._freed_to(1)
        if full:
            with suppress(TimeoutError):
                async with asyncio.timeout(_BATCH_PATIENCE):
                    await self._freed_to(self._concurrency // _BATCH)
        while self._writer.lag > self._slow and not self._runner.stopping:  # noqa: ASYNC110  a lag grows by itself
            await asyncio.sleep(self._slow / 4)
        return max(1, self._concurrency - len(self._runs))

    async def _freed_to(self, wanted: int) -> None:
        while self._concurrency - len(self._runs) < wanted and not self._runner.stopping:
            self._freed.clear()
            await self._freed.wait()

    def _turns(self) -> list[Turn]:
        return self._fair.of(run.held.name for run in self._runs.values())

    async def _claim(self, limit: int) -> int:
        turns = self._turns()
        until = time.monotonic() + self._lease
        with deadline_within(_LONGEST_CLAIM):
            claimed = await self._database.run(
                lambda tx: leases.claim(tx, owner=self.owner, lease=self._lease, turns=turns, limit=limit)
            )
        self._fair.given(claimed)
        for held in claimed:
            if self._runner.stopping:
                self._unbegun.append(held.id)
            else:
                self._begin(held, until)
        return len(claimed)

    async def _until_due(self, *, nothing: bool) -> None:
        """Waits until a saga is started in this process, or is due: a retry, or a lease that ran out. ``nothing`` could
        be claimed last time: what is due then is another engine's claim, or has no place here."""
        signal = self._database.signal(SIGNAL)
        while not await signal.wait(0):
            soonest = partial(leases.next_due, known=[turn.fingerprint for turn in self._turns()])
            due = await self._database.run(soonest, read_only=True)
            self._error = None
            if due is not None and due <= 0 and not nothing:
                return
            # With all that is asked more seldom it stays below one query a poll.
            wait = self._poll * random.uniform(1.25, 1.5)  # noqa: S311  jitter, no secret
            if due is not None and due < wait:
                # What is due and could not be claimed is asked for less and less often.
                await signal.wait(max(due, min(wait, _SHORTEST_WAIT * 2.0 ** min(self._fruitless, 10))))
                return
            if await signal.wait(wait):
                return

    def _due_in(self, seconds: float) -> None:
        if seconds < self._poll:  # else the next look finds it
            wake = self._database.signal(SIGNAL).set
            asyncio.get_running_loop().call_later(seconds + _SHORTEST_WAIT / 4, wake)

    def _begin(self, held: Held, until: float) -> None:
        before = self._runs.get(held.id)
        if before is not None:  # our own lease ran out, and it was we who took the saga up
            before.task.cancel()
        run = self._runs[held.id] = _Run(held, asyncio.create_task(self._carry(held)), until)
        run.task.add_done_callback(lambda _: self._done(run))

    async def _carry(self, held: Held) -> None:
        try:
            left = await self._runner.run(held)
        except Exception:  # noqa: BLE001  it is logged
            # Its lease runs out, and with the next claim the attempt is counted.
            self._log.exception("saga engine failed", extra={"saga": held.name, "saga_id": str(held.id)})
        else:
            if left is not None:
                self._unbegun.append(left.id)

    def _done(self, run: _Run) -> None:
        if self._runs.get(run.held.id) is run:
            del self._runs[run.held.id]
        self._freed.set()
        if len(self._bound) > 1 or any(self._limits.values()):  # others of its name may have waited for a place
            self._database.signal(SIGNAL).set()

    async def _beat_forever(self) -> None:
        while True:
            try:
                await self._beat()
                await self._survey()
                wait = self._lease / 3
            except Exception as error:  # noqa: BLE001  the database is away: it is asked again
                self._failed("heartbeat", error)
                wait = min(1.0, self._lease / 10)
            for run in self._runs.values():
                if run.until <= time.monotonic():
                    run.task.cancel()
            await asyncio.sleep(wait)

    async def _beat(self) -> None:
        now = time.monotonic()
        # What was claimed a moment ago has no need; most sagas end before their first heartbeat.
        old = {saga_id: run for saga_id, run in self._runs.items() if run.until - now < 0.7 * self._lease}
        if not old:
            return
        kept = await self._database.run(
            lambda tx: leases.heartbeat(tx, owner=self.owner, lease=self._lease, ids=old.keys())
        )
        for saga_id, run in old.items():
            if saga_id in kept:
                run.until = now + self._lease
            else:
                run.task.cancel()

    async def _survey(self) -> None:
        now = time.monotonic()
        if now < self._surveyed_at + min(_SURVEY, self._stranger_after):
            return
        found = await self._database.run(leases.survey, read_only=True)
        self._metrics.open(found)
        self._stuck = sum(count for _, status, count, _ in found if status == Status.STUCK)
        await self._welcome_strangers()
        # An engine that has just come may be the old version of two, and not know what the new one is about to take.
        if now > self._started_at + self._stranger_after:
            await self._park_strangers()
        self._surveyed_at = now

    async def _welcome_strangers(self) -> None:
        for saga_id, name in await self._database.run(lambda tx: leases.welcome(tx, known=self._known)):
            self._log.info("its definition is back: saga goes on", extra={"saga": name, "saga_id": str(saga_id)})
            self._database.signal(SIGNAL).set()

    async def _park_strangers(self) -> None:
        parked = await self._database.run(
            lambda tx: leases.park_strangers(tx, known=self._known, overdue=self._stranger_after, reason=_STRANGER)
        )
        for saga_id, name in parked:
            self._metrics.ended(name, Status.STUCK)
            self._log.error("saga is stuck: %s", _STRANGER, extra={"saga": name, "saga_id": str(saga_id)})

    def _failed(self, what: str, error: Exception) -> None:
        if self._error is None:  # once an outage
            away = isinstance(error, Unavailable)  # of which a stack says nothing
            self._log.error("saga engine: %s failed: %s", what, error, exc_info=None if away else error)
        self._error = f"{what}: {type(error).__name__}"


async def _end(*tasks: asyncio.Task[None], after: float = 0.0) -> None:
    """Waits for ``tasks``, cancels them after so many seconds, and waits for their end, ten more at most."""
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=after)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=10)
