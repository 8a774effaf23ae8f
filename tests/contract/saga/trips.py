"""Sagas whose steps follow a script and write down what they do, and what is needed to run them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from microkit.db import Database, Transaction
from microkit.db.migration import create_tables
from microkit.page import PageRequest
from microkit.saga import Retry, Saga, SagaEngine, StepContext, compensatable, pivot, retriable
from microkit.saga.tables import metadata as saga_tables
from microkit.saga.view import SagaStory, list_sagas, show_saga
from microkit.telemetry import Telemetry

AT_ONCE = Retry(attempts=4, initial=0, maximum=0)

own_tables = sa.MetaData()
effect = sa.Table(
    "effect",
    own_tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("saga_id", sa.Uuid, nullable=False),
    sa.Column("what", sa.Text, nullable=False),
)

Action = Callable[..., Awaitable[BaseModel | Mapping[str, Any] | None]]
Deed = BaseException | Callable[[], Awaitable[None]] | None
"""What an attempt does: raises, succeeds after something, or just succeeds."""


class Trip(BaseModel):
    """The state: what has been done so far, by the steps' own account."""

    done: list[str] = []


class Bench:
    """Steps, engines and what came of them, on one database.

    ``scripts`` holds what the attempts of a step do, in turn; when it is used up they succeed. ``calls`` holds every
    attempt as it began. Local steps leave a row in the table ``effect`` before the script is followed.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.telemetry = Telemetry("trips")
        self.scripts: dict[str, list[Deed]] = {}
        self.calls: list[tuple[str, StepContext]] = []

    async def prepare(self) -> None:
        await create_tables(self.database, [saga_tables, own_tables])

    def local(self, name: str) -> Action:
        async def step(state: Trip, tx: Transaction, step: StepContext) -> Trip:
            await tx.execute(sa.insert(effect), {"saga_id": step.saga_id, "what": name})
            await self._follow(name, step)
            return Trip(done=[*state.done, name])

        step.__name__ = name
        return step

    def remote(self, name: str) -> Action:
        async def step(state: Trip, step: StepContext) -> dict[str, list[str]]:
            await self._follow(name, step)
            return {"done": [*state.done, name]}

        step.__name__ = name
        return step

    async def _follow(self, name: str, step: StepContext) -> None:
        self.calls.append((name, step))
        script = self.scripts.get(name)
        deed = script.pop(0) if script else None
        if isinstance(deed, BaseException):
            raise deed
        if deed is not None:
            await deed()

    def trip(
        self, *, version: int = 1, timeout: float = 5.0, patient: bool = False, patience: float = 60.0
    ) -> Saga[Trip]:
        """Local, remote, a remote pivot, local; each compensation beside its action. Four attempts, or many."""
        retry = Retry(attempts=10_000, initial=0.01, maximum=0.1) if patient else AT_ONCE
        return Saga(
            "trip",
            Trip,
            [
                compensatable(self.local("seat"), undo=self.local("free_seat"), retry=retry, undo_retry=retry),
                compensatable(
                    self.remote("room"),
                    undo=self.remote("free_room"),
                    timeout=timeout,
                    retry=retry,
                    undo_retry=retry,
                    patience=patience,
                ),
                pivot(self.remote("pay"), timeout=timeout, retry=retry),
                retriable(self.local("tell"), retry=retry),
            ],
            version=version,
        )

    @asynccontextmanager
    async def engine(
        self,
        *sagas: Saga[Any],
        resources: Mapping[Any, object] | None = None,
        lease: float = 30.0,
        concurrency: int = 32,
        poll: float = 0.05,
        stranger_after: float | None = None,
    ) -> AsyncIterator[SagaEngine]:
        """An engine that works until the block ends."""
        engine = SagaEngine(
            self.database,
            self.telemetry,
            sagas,
            resources or {},
            lease=lease,
            concurrency=concurrency,
            poll=poll,
            stranger_after=stranger_after,
        )
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop(timeout=5)

    async def later(self) -> None:
        """An hour goes by for what is written: leases have run out, pauses and waits for an event are over, and so is
        the time for which one is kept.

        Not for sagas that an engine works on, unless it is a paused one.
        """
        async with self.database.transaction() as tx:
            for column in ("saga.next_at", "saga_wait.due", "saga_mail.keep_until"):
                table, name = column.split(".")
                on_sqlite = tx.dialect == "sqlite"
                earlier = f"datetime({name}, '-1 hour')" if on_sqlite else f"{name} - interval '1 hour'"
                await tx.execute(sa.text(f"UPDATE {table} SET {name} = {earlier} WHERE {name} IS NOT NULL"))

    async def begin(self, saga: Saga[Trip], state: Trip | None = None, *, saga_id: UUID | None = None) -> UUID:
        """Starts a saga in a transaction of its own."""
        return await self.database.run(lambda tx: saga.start(tx, state or Trip(), saga_id=saga_id))

    async def story(self, saga_id: UUID) -> SagaStory:
        return await self.database.run(lambda tx: show_saga(tx, saga_id), read_only=True)

    async def until(self, saga_id: UUID, *statuses: str) -> SagaStory:
        """Waits for a saga to have one of ``statuses``."""
        async with asyncio.timeout(120):
            while (story := await self.story(saga_id)).status not in statuses:
                await asyncio.sleep(0.01)
        return story

    async def until_rest(self, saga_id: UUID) -> SagaStory:
        """Waits for a saga to end, or to be stuck."""
        return await self.until(saga_id, "completed", "compensated", "stuck")

    async def until_all_rest(self) -> list[SagaStory]:
        async with asyncio.timeout(60):
            while True:
                found: list[UUID] = []
                request = PageRequest(limit=100)
                while True:
                    page = await self.database.run(lambda tx, r=request: list_sagas(tx, r), read_only=True)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
                    found += [saga.id for saga in page.items if saga.status in ("completed", "compensated", "stuck")]
                    if page.next_cursor is None:
                        break
                    request = PageRequest(limit=100, cursor=page.next_cursor)
                total = await self.scalar(sa.select(sa.func.count()).select_from(saga_tables.tables["saga"]))
                if total and len(found) == total:
                    return [await self.story(saga_id) for saga_id in found]
                await asyncio.sleep(0.02)

    async def scalar(self, statement: sa.Select[Any]) -> Any:
        async with self.database.transaction(read_only=True) as tx:
            return (await tx.execute(statement)).scalar()

    async def effects(self, saga_id: UUID | None = None) -> list[str]:
        """What local steps have left in the database."""
        statement = sa.select(effect.c.what).order_by(effect.c.number)
        if saga_id is not None:
            statement = statement.where(effect.c.saga_id == saga_id)
        async with self.database.transaction(read_only=True) as tx:
            return [row[0] for row in await tx.execute(statement)]

    def called(self) -> list[str]:
        """The steps of all attempts, in the order they began."""
        return [name for name, _ in self.calls]


def history(story: SagaStory) -> list[tuple[str, str, int, str]]:
    """The ended attempts, each as its step, direction, number and how it ended."""
    return [(step.step, step.direction, step.attempt, step.status) for step in story.steps]
