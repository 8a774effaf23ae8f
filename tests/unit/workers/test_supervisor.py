"""What several workers cannot share is refused; what they share is known to a registry once."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import MetaData

from microkit import ConfigurationError, Service
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Endpoint
from microkit.workers.admin import admin_app
from microkit.workers.asking import Asked
from microkit.workers.known import Known
from microkit.workers.supervisor import Supervisor

pytestmark = pytest.mark.anyio

REDIS = "redis://localhost:6379/0"


def supervised(service: Service, **settings: object) -> Supervisor:
    return Supervisor(service.declared, service.settings({"workers": 3, **settings}), ["false"])


def test_a_bus_in_memory_is_refused_where_there_are_events() -> None:
    with pytest.raises(ConfigurationError) as caught:
        supervised(Service("till", tables=MetaData()))
    assert str(caught.value) == (
        "TILL_BUS_URL is memory://, and each of the 3 workers would have a bus of its own, which the others never "
        "hear: name a broker, such as redis://localhost:6379/0, or set TILL_WORKERS=1"
    )
    supervised(Service("till", tables=MetaData()), bus_url=REDIS)
    supervised(Service("door"))  # it has no events


def test_a_database_in_memory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="TILL_DATABASE_URL is a database in memory"):
        supervised(Service("till", tables=MetaData()), bus_url=REDIS, database_url="sqlite+aiosqlite:///:memory:")


async def test_a_worker_that_does_not_start_ends_the_start_and_gives_the_port_back() -> None:
    for _ in range(2):
        supervisor = supervised(Service("door"), port=0)
        with pytest.raises(ConfigurationError, match="door does not start: worker 1 ended with code 1"):
            await supervisor.start()


async def test_the_registry_knows_one_endpoint_while_a_worker_is_ready() -> None:
    registry = MemoryRegistry()
    slots: list[Any] = [SimpleNamespace(ready=False), SimpleNamespace(ready=False)]
    endpoint = Endpoint("http://127.0.0.1:3003")
    known = Known(registry, "till", endpoint, slots)
    changes = registry.watch("till")

    async def until(number: int) -> None:
        async with asyncio.timeout(30):
            while len(await anext(changes)) != number:
                pass

    async with AsyncExitStack() as owned:
        known.keep()
        owned.push_async_callback(known.forget)
        await until(0)
        slots[1].ready = True
        await until(1)
        slots[0].ready, slots[1].ready = True, False
        await asyncio.sleep(0.5)
        assert list(await registry.resolve("till")) == [endpoint]
        slots[0].ready = False
        await until(0)
        slots[0].ready = True
        await until(1)
    await until(0)


class Slot:
    """A place whose workers are whatever the test says."""

    def __init__(self, number: int, said: list[str]) -> None:
        self.number = number
        self.restarts = 0
        self.ready = False
        self.current: Any = None
        self.looking = asyncio.Event()
        self.said = said
        self.over = asyncio.Event()
        self.over.set()

    async def fill(self) -> None:
        self.ready = True

    async def replace(self) -> bool:
        self.said.append(f"replaced {self.number}")
        if self.number == 9:
            raise OSError("no process is left")
        return True

    async def look(self) -> None:
        self.said.append("looked")
        await self.looking.wait()

    def stay_empty(self) -> None:
        self.said.append(f"no more in {self.number}")

    def end(self) -> None:
        self.said.append(f"end {self.number}")

    async def ended(self) -> None:
        await self.over.wait()

    async def kill(self) -> None:
        self.said.append(f"killed {self.number}")


def with_slots(monkeypatch: pytest.MonkeyPatch) -> tuple[Supervisor, list[str]]:
    supervisor, said = supervised(Service("door"), port=0, workers=2), list[str]()
    monkeypatch.setattr(supervisor, "_slot", lambda number: Slot(number, said))
    return supervisor, said


async def until(said: list[str], text: str) -> None:
    async with asyncio.timeout(30):
        while text not in said:
            await asyncio.sleep(0.005)


async def test_asked_to_replace_all_before_all_are_there_it_does_so_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor, said = with_slots(monkeypatch)
    supervisor.roll()
    async with supervisor:
        await until(said, "replaced 2")
    assert said[:2] == ["replaced 1", "replaced 2"]


async def test_no_worker_is_put_anywhere_from_the_moment_it_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, said = with_slots(monkeypatch)
    async with supervisor:
        known: Any = supervisor._known

        async def forget() -> None:
            said.append("forgotten")
            supervisor.roll()

        monkeypatch.setattr(known, "forget", forget)
    assert said[:-2] == ["no more in 1", "no more in 2", "forgotten", "end 1", "end 2"]


async def test_told_twice_to_end_it_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, said = with_slots(monkeypatch)
    await supervisor.start()
    slots: Any = supervisor.slots
    slots[1].over.clear()
    stopping = asyncio.create_task(supervisor.stop())
    await until(said, "end 2")
    assert "killed 2" not in said
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert said[-2:] == ["killed 1", "killed 2"]


async def test_a_replacement_that_failed_does_not_make_the_end_fail(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor, said = with_slots(monkeypatch)
    async with supervisor:
        supervisor.slots[0].number = 9
        supervisor.roll()
        await until(said, "replaced 9")
    assert "replaced 2" not in said
    assert "a new worker cannot be started (no process is left): the old ones stay" in caplog.text


async def test_scrapes_that_wait_share_one_count_that_began_after_they_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, said = with_slots(monkeypatch)
    async with supervisor:
        slots: Any = supervisor.slots
        scrapes = [asyncio.create_task(supervisor.gather())]
        await until(said, "looked")
        scrapes += [asyncio.create_task(supervisor.gather()) for _ in range(5)]
        await asyncio.sleep(0.05)
        for slot in slots:
            slot.looking.set()
        assert all(b"microkit_workers" in text for text in await asyncio.gather(*scrapes))
        assert said.count("looked") == 4  # two by each of the two workers


async def test_a_temporary_folder_with_too_long_a_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigurationError, match=r"AF_UNIX path too long.*: set TMPDIR to a folder with a short name"):
        await supervised(Service("door"), port=0).start()
    assert list(long.iterdir()) == []


class Answering:
    """A worker that answers one path, or nothing."""

    pid = 4711
    running = True

    def __init__(self, document: dict[str, object] | None, status: int = 200) -> None:
        self._answer = Asked(status, orjson.dumps(document)) if document is not None else None

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Asked | None:
        if self._answer is None:
            await asyncio.Event().wait()
        return self._answer


async def asked(*workers: Answering, path: str, stopping: bool = False) -> httpx.Response:
    slots = [Slot(number, []) for number in range(1, len(workers) + 1)]
    for slot, worker in zip(slots, workers, strict=True):
        slot.current, slot.ready = worker, True
    instance: Any = SimpleNamespace(declared=Service("door").declared, slots=slots, stopping=stopping)
    transport = httpx.ASGITransport(admin_app(instance, loopback=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client, asyncio.timeout(30):
        return await client.get(path)


async def test_one_worker_that_is_ready_is_enough_while_another_answers_nothing() -> None:
    answer = await asked(Answering(None), Answering({"status": "ready"}), path="/health/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


async def test_where_the_database_is_away_it_is_down_but_not_starting() -> None:
    down = Answering({"status": "down", "state": "ready", "parts": {"database": {"status": "down"}}}, 503)
    answer = await asked(down, down, path="/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["state"]) == (503, "down", "ready")
