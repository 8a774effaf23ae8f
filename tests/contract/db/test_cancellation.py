"""A transaction that is cancelled leaves nothing behind, wherever it was: no connection lent out, none idle in
transaction, no task, no lock."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

import anyio
import pytest
from sqlalchemy import Integer, Text, column, insert, select, table, text

from microkit.db import Database, DatabaseUnavailable, PreparedInsert, Transaction
from microkit.message import Event
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

Count = Callable[[Database], Awaitable[int]]
How = Literal["at once", "soon", "with the answer there", "by a scope"]


class Minted(Event, topic="test.coins", key="coin_id"):
    coin_id: int


class Cancelled:
    """Awaits a coroutine and cancels it at its ``at``-th suspension; ``reached`` says whether there was one."""

    def __init__(self, work: Coroutine[Any, Any, None], at: int, how: How, scope: anyio.CancelScope) -> None:
        self.work = work
        self.at = at
        self.how = how
        self.scope = scope
        self.reached = False

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self.work.__await__()
        suspensions = 0
        try:
            waited = next(steps)
            while True:
                suspensions += 1
                if suspensions == self.at:
                    self.reached = True
                    self.cancel(waited)
                try:
                    value = yield waited
                except BaseException as error:  # noqa: BLE001  it is passed on
                    waited = steps.throw(error)
                else:
                    waited = steps.send(value)
        except StopIteration:
            return

    def cancel(self, waited: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        match self.how:
            case "at once":
                task.cancel()
            case "soon":
                asyncio.get_running_loop().call_soon(task.cancel)
            case "with the answer there" if waited is not None:
                # The answer and the cancellation come in the same round of the loop, and the answer is lost.
                waited.add_done_callback(lambda _: task.cancel())
            case _:
                self.scope.cancel()


OUTBOX = PreparedInsert(insert(table("coin", column("id", Integer), column("name", Text))), ["id", "name"])


async def write_outbox(tx: Transaction, events: Any) -> None:
    await tx.insert(OUTBOX, [{"id": -event.coin_id, "name": "outbox"} for event, _ in events])


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


async def settled(database: Database) -> None:
    """Waits until the server has seen the end of cut connections, and checks that nothing is left over."""
    for pool in {database._writers, database._readers}:
        assert (pool.used, pool.pending) == (0, 0)
        assert pool.engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert pool._free._value == pool.size
    for _ in range(200):
        async with database.transaction(read_only=True) as tx:
            if database.dialect == "sqlite":
                return
            open_ones = await tx.scalars(
                text(
                    "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "AND (state LIKE 'idle in transaction%' OR state = 'active')"
                )
            )
        if not open_ones:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"still in a transaction: {open_ones}")


@pytest.mark.parametrize("reads_first", [True, False])  # without it, it may be one round trip
@pytest.mark.parametrize("pool", ["warm", "cold"])
@pytest.mark.parametrize("how", ["at once", "soon", "with the answer there", "by a scope"])
async def test_a_transaction_cancelled_at_any_await_leaves_nothing_behind(
    coins: Database, coin: type[Any], count: Count, how: How, pool: str, reads_first: bool
) -> None:
    coins.outbox_writer = write_outbox
    committed = 0

    async def work(number: int) -> None:
        async with coins.transaction() as tx:
            if reads_first:
                await tx.scalars(select(coin.id))
            tx.add(coin(id=number, name="cowrie"))
            if reads_first:
                await tx.flush()
            tx.publish(Minted(coin_id=number))

    for at in range(1, 1000):
        if pool == "cold":
            await coins._writers.engine.dispose()
        before = asyncio.all_tasks()
        reached, done = await cancelled_at(work(at), at, how)
        await settled(coins)
        closing = asyncio.all_tasks() - before  # SQLAlchemy closes a cut connection in a task of its own
        assert not closing or not (await asyncio.wait(closing, timeout=10))[1]
        found = await count(coins)
        assert found in (committed, committed + 2), "the row and its event stand or fall together"
        assert found == committed + 2 or not done
        committed = found
        if not reached:
            break
    assert at > 1, "the scenario has awaits to be cancelled at"


async def cancelled_at(work: Coroutine[Any, Any, None], at: int, how: How) -> tuple[bool, bool]:
    """Whether the work got as far as that, and whether it ended well."""
    with anyio.CancelScope() as scope:
        stepped = Cancelled(work, at, how, scope)
        if how == "by a scope":
            await stepped
        else:
            done = await asyncio.gather(run(stepped), return_exceptions=True)
            assert done[0] is None or isinstance(done[0], asyncio.CancelledError)
            return stepped.reached, done[0] is None
    return stepped.reached, not scope.cancelled_caught


async def run(stepped: Cancelled) -> None:
    await stepped


async def test_a_cancelled_wait_for_a_place_takes_none(coins: Database, count: Count) -> None:
    async def hold(entered: asyncio.Event, leave: asyncio.Event) -> None:
        async with coins.transaction() as tx:
            await tx.execute(text("SELECT 1"))
            entered.set()
            await leave.wait()

    leave = asyncio.Event()
    holders = []
    for _ in range(coins._writers.size):
        entered = asyncio.Event()
        holders.append(asyncio.create_task(hold(entered, leave)))
        await entered.wait()
    waiters = [asyncio.create_task(hold(asyncio.Event(), leave)) for _ in range(3)]
    while coins._writers.pending < 3:
        await asyncio.sleep(0)
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    leave.set()
    await asyncio.gather(*holders)
    await settled(coins)
    assert await count(coins) == 0


async def test_a_cancelled_statement_stops_on_the_server(postgres_url: str, telemetry: Telemetry) -> None:
    database = Database(postgres_url, telemetry=telemetry)

    async def work(tx: Transaction) -> None:
        await tx.execute(text("SELECT pg_sleep(3600)"))

    task = asyncio.create_task(database.run(work))
    while not await active(database):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(database)
    await database.close()


async def active(database: Database) -> list[int]:
    """The servers of statements under way, but for this one."""
    async with database.transaction(read_only=True) as tx:
        return list(
            await tx.scalars(
                text(
                    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
                    "AND pid <> pg_backend_pid() AND query LIKE '%pg_sleep%'"
                )
            )
        )


class Frozen:
    """The server process of one connection, stopped: to the client it is a network that swallows everything."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __enter__(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGCONT)


async def test_a_server_that_falls_silent_is_given_up(
    postgres_url: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.db.postgresql._SILENCE", 0.2)
    database = Database(postgres_url, telemetry=telemetry, statement_timeout=0.2)
    with pytest.raises(DatabaseUnavailable, match="does not answer"):
        async with database.transaction() as tx:
            with Frozen(await tx.scalar(text("SELECT pg_backend_pid()"))):
                await tx.execute(text("SELECT 1"))
    await settled(database)
    await database.close()


async def test_a_transaction_cancelled_while_the_server_is_silent_leaves_nothing_behind(
    postgres_url: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microkit.db.shield.GRACE", 0.1)
    database = Database(postgres_url, telemetry=telemetry)
    pids: list[int] = []
    begun = asyncio.Event()

    async def work(tx: Transaction) -> None:
        pids.append(await tx.scalar(text("SELECT pg_backend_pid()")))
        begun.set()
        await asyncio.sleep(0)
        await tx.execute(text("SELECT 1"))

    task = asyncio.create_task(database.run(work))
    await begun.wait()
    with Frozen(pids[0]):
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert database._writers.used == 0
    await settled(database)
    await database.close()
