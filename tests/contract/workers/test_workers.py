"""Several workers on one port: real processes, killed, replaced and drained under load."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

import aiohttp
import pytest

from microkit.testing.consul import ConsulServer
from tests.contract.workers.workers_process import ALL, Load, Run, run, system_in

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
slow = pytest.mark.skipif(not FULL, reason="the full form of the fault tests")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def sockets_of(running: Run) -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"microkit-{running.process.pid}-*"))


async def until_gone(pids: list[int]) -> None:
    async with asyncio.timeout(60):
        while not all(gone(pid) for pid in pids):
            await asyncio.sleep(0.02)


def registered_at(consul: ConsulServer) -> dict[str, str]:
    return {"ALPHA_DISCOVERY_URL": f"{consul.url}?check=http"}


async def until_registered(consul: ConsulServer, running: Run) -> None:
    """Returns when the registry knows the one port that all share, and nothing else."""
    async with asyncio.timeout(60):
        while not consul.agent.services:
            await asyncio.sleep(0.02)
    (entry,) = consul.agent.services.values()
    assert (f"http://{entry.address}:{entry.port}", entry.passing) == (running.url, True)


async def until_refused(running: Run) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await running.get(f"{running.url}/hello")
            except aiohttp.ClientError:
                return


async def test_two_workers_count_as_one_and_what_a_killed_one_counted_stays(tmp_path: Path) -> None:
    async with ConsulServer() as consul, run(tmp_path, 2, registered_at(consul)) as running:
        first = await running.pids()
        await until_registered(consul, running)
        load = Load()
        await asyncio.gather(*(load.send(f"{running.url}/hello", asyncio.Event(), 100) for _ in range(4)))
        sent = len(load.answers)
        assert sent >= 100
        assert set(load.answers) == {200}
        assert await running.counted("/hello") == sent
        # Whichever worker a scrape meets says the same.
        for _ in range(3):
            scraped = await running.scraped()
            assert sum(n for name, n in scraped.items() if name.startswith(ALL) and '"/hello"' in name) == sent
        assert {f'process_resident_memory_bytes{{worker="{n}"}}' for n in ("1", "2", "supervisor")} <= set(scraped)

        # One is killed under load: the others go on, a new one comes with the log level of all, and no count goes back.
        assert await running.level("WARNING") == "WARNING"
        async with load.on(f"{running.url}/hello"):
            await load.until(30)
            counts = [await running.counted("/hello")]
            os.kill(first[1], signal.SIGKILL)
            while first[1] in (now := await running.pids()) or len(now) < 2:
                counts.append(await running.counted("/hello"))
                await asyncio.sleep(0.05)
            counts.append(await running.counted("/hello"))
            await load.until(30)
        counts.append(await running.counted("/hello"))
        assert await running.level() == "WARNING"
        assert counts == sorted(counts)
        assert set(load.answers) == {200}
        assert len(load.broken) <= 3  # what the killed one was answering
        scraped = await running.scraped(admin=True)
        assert scraped["microkit_worker_restarts_total"] == 1
        assert any("worker 2 was ended by SIGKILL" in message for message in running.messages())
        await consul.run_checks()
        await until_registered(consul, running)

        # And all are drained: what is under way is answered, the port refuses what comes later.
        under_way = [asyncio.create_task(running.get(f"{running.url}/slow")) for _ in range(6)]
        await running.until_active(6)
        last = await running.pids()
        for pid in [running.process.pid, *last]:  # all are told, as by who tells every process of a service
            os.kill(pid, signal.SIGTERM)
        assert [status for status, _ in await asyncio.gather(*under_way)] == [200] * 6
        assert await running.ended() == 0
        await until_gone(last)
        await until_refused(running)
        # The registry was told once that the instance is there, and once that it is not.
        assert (consul.agent.services, consul.requests["PUT /v1/agent/service"]) == ({}, 2)
    assert sockets_of(running) == []


@slow
async def test_each_worker_is_replaced_under_load_and_nobody_notices(tmp_path: Path) -> None:
    async with run(tmp_path, 2) as running:
        load = Load()
        async with load.on(f"{running.url}/hello"):
            assert await running.level("WARNING") == "WARNING"
            for time in range(1, 4):
                before = await running.pids()
                running.send(signal.SIGHUP)
                async with asyncio.timeout(60):
                    while running.messages().count("all workers were replaced") < time:
                        await asyncio.sleep(0.05)
                await load.until(100)
                assert not set(before) & set(await running.pids())
        assert (load.broken, set(load.answers)) == ([], {200})
        assert await running.counted("/hello") == len(load.answers)
        assert await running.level() == "INFO"  # as the settings say, which were read anew
        # Where the new code does not start, the old workers stay.
        (tmp_path / "tiny.py").write_text("system = None")
        before = await running.pids()
        running.send(signal.SIGHUP)
        async with asyncio.timeout(60):
            while "a new worker does not start: the old ones stay at work" not in running.messages():
                await asyncio.sleep(0.05)
        assert await running.pids() == before
        # Told to end while they are being replaced, all end in order.
        system_in(tmp_path, int(running.url.rpartition(":")[2]))
        running.send(signal.SIGHUP)
        await asyncio.sleep(0.3)
        running.send(signal.SIGTERM)
        running.send(signal.SIGHUP)
        assert await running.ended() == 0
        assert not [line for line in running.lines if "Traceback" in line]
        await until_gone(before)


@pytest.mark.parametrize(
    ("workers", "by"),
    [(1, signal.SIGTERM), *([(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGTERM)] if FULL else [])],
)
async def test_the_first_signal_drains_and_the_second_ends_at_once(
    tmp_path: Path, workers: int, by: signal.Signals
) -> None:
    async with run(tmp_path, workers) as running:
        pids = await running.pids() if workers > 1 else [running.process.pid]
        endless = asyncio.create_task(running.get(f"{running.url}/endless"))
        await running.until_active(1)
        running.send(by)
        await until_refused(running)
        assert running.process.returncode is None
        assert not endless.done()
        running.send(by)
        assert await running.ended() == 130
        try:
            status, _ = await endless
        except aiohttp.ClientError:
            status = 0
        assert status in (0, 500)
        await until_gone(pids)


@slow
async def test_a_worker_that_answers_nothing_is_killed_and_another_takes_its_place(tmp_path: Path) -> None:
    async with run(tmp_path, 2, {"ALPHA_WORKER_TIMEOUT": "1s"}) as running:
        before = await running.pids()
        stuck = asyncio.create_task(running.get(f"{running.url}/stuck"))
        with pytest.raises(aiohttp.ClientError):
            await stuck
        async with asyncio.timeout(60):
            while len(now := await running.pids()) < 2 or set(now) == set(before):
                await asyncio.sleep(0.05)
        assert any("answers nothing for 1 s: it is killed" in message for message in running.messages())


@slow
async def test_workers_do_not_outlive_the_one_that_looks_after_them(tmp_path: Path) -> None:
    async with run(tmp_path, 2) as running:
        pids = await running.pids()
        running.process.kill()
        await running.ended()
        await until_gone(pids)
