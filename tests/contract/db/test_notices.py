"""Wake-ups between processes: after COMMIT, on a connection of their own that comes back when it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.db import Database
from microkit.db.notices import Notices
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

NAME = "outbox"
PATIENCE = 60


@pytest.fixture
async def two(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """One database in two processes, as far as it can tell; the second hears the first."""
    here, there = (Database(postgres_url, telemetry=Telemetry(name)) for name in ("here", "there"))
    for each in (here, there):
        await each.start()
    here.share(NAME)
    there.listen(NAME)
    await heard(there)
    yield here, there
    for each in (here, there):
        await each.close()


async def heard(database: Database) -> None:
    """Waits until it hears, and takes the wake-up that this begins with."""
    async with asyncio.timeout(PATIENCE):
        while not database.hears:
            await asyncio.sleep(0.01)
    await database.signal(NAME).wait(0.01)


async def commit(database: Database) -> None:
    async with database.transaction() as tx:
        await tx.execute(sa.text("SELECT 1"))
        tx.wake(NAME)


async def test_a_commit_wakes_the_other_process(two: tuple[Database, Database]) -> None:
    here, there = two
    await commit(here)
    assert await there.signal(NAME).wait(PATIENCE)
    assert await here.signal(NAME).wait(0)


async def test_a_rollback_wakes_nobody(two: tuple[Database, Database]) -> None:
    here, there = two
    with pytest.raises(ZeroDivisionError):
        async with here.transaction() as tx:
            tx.wake(NAME)
            raise ZeroDivisionError
    assert not await there.signal(NAME).wait(0.1)


async def test_nobody_is_told_of_what_is_not_shared_or_has_one_waiter_alone(two: tuple[Database, Database]) -> None:
    here, there = two
    there.listen("saga")
    async with here.transaction() as tx:
        tx.wake("saga")
    here.signal(NAME).alone = True
    await commit(here)
    assert not await there.signal(NAME).wait(0.1)
    here.signal(NAME).alone = False
    await commit(here)
    assert await there.signal(NAME).wait(PATIENCE)


async def test_many_commits_are_few_notices_and_the_last_is_heard(two: tuple[Database, Database]) -> None:
    here, there = two
    notices: Any = there._notices
    told: list[str] = []
    through = notices._heard

    def hear(name: str) -> None:
        told.append(name)
        through(name)

    notices._heard = hear
    for _ in range(200):
        await commit(here)
    assert await there.signal(NAME).wait(PATIENCE)
    assert len(told) < 200


async def test_the_connection_comes_back_and_says_so_once(
    two: tuple[Database, Database], postgres_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = two
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            postgres_cluster.psql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            async with asyncio.timeout(PATIENCE):
                while there.hears:
                    await asyncio.sleep(0.01)
            await heard(there)
            async with asyncio.timeout(PATIENCE):  # the first notices may be lost with their connection
                while not await there.signal(NAME).wait(0.2):
                    await here.run(_wake)
    told = [
        record.getMessage() for record in caplog.records if record.name == "there" or "heard" in record.getMessage()
    ]
    assert len([line for line in told if "not heard" in line]) >= 2
    assert len([line for line in told if "again" in line]) >= 2
    assert len(told) <= 8  # of both processes


async def _wake(tx: Any) -> None:
    await tx.execute(sa.text("SELECT 1"))
    tx.wake(NAME)


async def test_behind_a_pooler_nothing_is_believed_to_be_heard(postgres_url: str, caplog: Any) -> None:
    class Pooled:
        """A pooler gives its own number with the connection, and the server's own is another."""

        def get_server_pid(self) -> int:
            return 1

        async def fetchval(self, _sql: str) -> int:
            return 2

        def terminate(self) -> None: ...

    async def connect() -> Any:
        return Pooled()

    notices = Notices(connect, lambda _name: None, logging.getLogger("pooled"))
    with caplog.at_level(logging.INFO):
        notices.listen(NAME)
        async with asyncio.timeout(PATIENCE):
            while "pooler" not in caplog.text:
                await asyncio.sleep(0.01)
        notices.tell(NAME)
        await asyncio.sleep(0.05)
    assert not notices.hears
    assert caplog.text.count("pooler") == 1
    await notices.close()


async def test_sqlite_hears_nobody_and_says_so(tmp_path: Any) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/x.db", telemetry=Telemetry("x"))
    await database.start()
    database.share(NAME)
    database.listen(NAME)
    await commit(database)
    assert await database.signal(NAME).wait(0)
    assert not database.hears
    await database.close()
