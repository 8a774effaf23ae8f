"""Virtual time: all clocks leap together, and only when nothing can move."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from microkit.db import Database, database_now
from microkit.errors import MicrokitError
from microkit.telemetry import Telemetry
from microkit.testing.clock import VirtualClock, run_virtually, virtual_time

DAY = timedelta(days=1)


def test_a_day_passes_on_all_clocks_at_once_and_in_no_time(database_url: str) -> None:
    async def work(clock: VirtualClock) -> list[timedelta]:
        database = Database(database_url, telemetry=Telemetry("test"))
        await database.start()

        async def now() -> tuple[datetime, datetime, float]:
            async with database.transaction(read_only=True) as tx:
                read = (await tx.execute(sa.select(database_now()))).scalar_one()
            return read, datetime.now(UTC), time.monotonic()

        before = await now()
        await asyncio.sleep(DAY.total_seconds())
        after = await now()
        await database.close()
        return [after[0] - before[0], after[1] - before[1], timedelta(seconds=after[2] - before[2])]

    real = time.monotonic()
    passed = run_virtually(work)

    assert all(DAY <= each < DAY + timedelta(hours=1) for each in passed)
    assert time.monotonic() - real < 3600
    assert abs(datetime.now(UTC).timestamp() - time.time()) < 3600, "the real clock is back"


def test_a_database_that_is_at_work_is_waited_for(tmp_path: Path) -> None:
    async def work(clock: VirtualClock) -> float:
        database = Database(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}", telemetry=Telemetry("test"))
        await database.start()
        count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT max(i) FROM n"
        async with asyncio.timeout(30), database.transaction(read_only=True) as tx:
            await tx.execute(sa.text(count))
        skipped = clock.skipped
        await database.close()
        return skipped

    assert run_virtually(work) < 1


def test_a_thread_that_is_at_work_is_waited_for() -> None:
    async def work(clock: VirtualClock) -> str:
        gate = threading.Event()
        waiting = asyncio.to_thread(gate.wait, 60)
        threading.Timer(0.2, gate.set).start()
        async with asyncio.timeout(3600):
            await waiting
        return "waited for" if clock.skipped < 3600 else "leapt over"

    assert run_virtually(work) == "waited for"


def test_a_connection_on_which_nothing_comes_does_not_hold_the_time_up() -> None:
    async def work(clock: VirtualClock) -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(host, port)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(DAY.total_seconds()):
                    await reader.read()
            writer.close()
            await writer.wait_closed()

    run_virtually(work)


def test_an_answer_over_a_connection_comes_before_its_time_out() -> None:
    async def work(clock: VirtualClock) -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            for _ in range(200):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"here\n")
                async with asyncio.timeout(1):
                    answer = await reader.readline()
                writer.close()
                await writer.wait_closed()
        return answer

    assert run_virtually(work) == b"here\n"


def test_there_is_one_virtual_time_in_a_process() -> None:
    with virtual_time(), pytest.raises(MicrokitError, match="on already"), virtual_time():
        pass


def test_what_fails_in_virtual_time_fails_where_it_is_waited_for() -> None:
    async def work(clock: VirtualClock) -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        run_virtually(work)
