"""One place for a worker: whatever becomes of those that are put there, there is one at work, and all are seen to."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from microkit.workers import slot as slots
from microkit.workers.asking import Asked
from microkit.workers.merging import Whole
from microkit.workers.slot import Slot

pytestmark = pytest.mark.anyio


class Worker:
    """As a worker's process, but that it ends when the test says so."""

    def __init__(self, name: str, *, starts: bool, drains: bool) -> None:
        self.number = 1
        self.name = name
        self.pid = int(name)
        self.ready = False
        self.starts = starts
        self.heard = time.monotonic()
        self.looks = self.seen = 0
        self.closed = False
        self.signals: list[int] = []
        self.asked: list[asyncio.Future[str]] = []
        self._drains = drains
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> bool:
        return not self._code.done()

    def ends(self, code: int) -> None:
        if self.running:
            self._code.set_result(code)

    def signal(self, number: int) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.ends(-signal.SIGKILL)
        elif self._drains:
            self.ends(0)

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def ask(self, _: str, path: str, body: bytes | None = None, *, within: float = 5.0) -> Asked | None:
        if path == "/health":
            return Asked(200, b'{"state": "ready"}' if self.starts else b'{"state": "starting"}')
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked.append(answer)
        return Asked(200, (await answer).encode())

    async def close(self) -> None:
        self.closed = True


@dataclass
class Place:
    """A slot, and all that were ever started for it."""

    started: list[Worker] = field(default_factory=list)
    refusals: int = 0
    """How often the system has no process left."""
    starts: bool = True
    drains: bool = True

    async def start(self, _: int) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.started.append(Worker(str(len(self.started) + 1), starts=self.starts, drains=self.drains))
        return self.started[-1]

    @property
    def running(self) -> list[str]:
        return [worker.name for worker in self.started if worker.running]

    async def until_started(self, number: int) -> Worker:
        async with asyncio.timeout(30):
            while len(self.started) < number or not self.started[number - 1].ready:
                await asyncio.sleep(0.005)
        return self.started[number - 1]

    @asynccontextmanager
    async def slot(self, whole: Whole | None = None) -> AsyncIterator[Slot]:
        slot = Slot(
            1, self.start, whole or Whole(), logging.getLogger("slot"), restarted=lambda: None, timeout=0, patience=30
        )
        try:
            yield slot
        finally:
            await slot.kill()
            assert self.running == []
            assert all(worker.closed for worker in self.started)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(slots, "_POLL", 0.005)


async def until_said(caplog: pytest.LogCaptureFixture, text: str, times: int = 1) -> None:
    async with asyncio.timeout(30):
        while caplog.text.count(text) < times:
            await asyncio.sleep(0.005)


async def test_a_worker_put_there_while_one_that_failed_is_waited_for_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "_SHORTEST_PAUSE", 5.0)
    monkeypatch.setattr(slots, "_LONGEST_PAUSE", 0.01)  # from the second time on
    place = Place()
    async with place.slot() as slot:
        assert await slot.fill() is None
        place.started[0].ends(1)
        await until_said(caplog, "ended with code 1; a new one is started in 5 s")
        assert await slot.replace()
        await asyncio.sleep(0.05)
        assert (place.running, len(place.started)) == (["2"], 2)
        # And it is looked after.
        place.started[1].ends(3)
        await place.until_started(3)
        assert place.running == ["3"]


async def test_a_new_worker_that_fails_while_the_old_one_drains_is_started_again() -> None:
    place = Place(drains=False)
    async with place.slot() as slot:
        await slot.fill()
        rolling = asyncio.create_task(slot.replace())
        new = await place.until_started(2)
        async with asyncio.timeout(30):
            while signal.SIGTERM not in place.started[0].signals:
                await asyncio.sleep(0.005)
        new.ends(1)
        await place.until_started(3)
        assert place.running == ["1", "3"]
        assert not rolling.done()
        place.started[0].ends(0)
        assert await rolling
        assert place.running == ["3"]


async def test_where_it_is_to_stay_empty_nothing_is_started_whoever_asks() -> None:
    place = Place()
    async with place.slot() as slot:
        await slot.fill()
        slot.stay_empty()
        assert not await slot.replace()
        place.started[0].ends(0)
        async with asyncio.timeout(30):
            await slot.ended()
        assert not await slot.replace()
        assert len(place.started) == 1


async def test_where_no_process_can_be_started_it_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    async with place.slot() as slot:
        await slot.fill()
        place.refusals = 3
        with pytest.raises(BlockingIOError):
            await slot.replace()
        assert place.running == ["1"]
        place.started[0].ends(1)
        await place.until_started(2)
        assert (slot.restarts, place.running) == (1, ["2"])
        assert caplog.text.count("worker 1 cannot be started ([Errno 11] Resource temporarily unavailable)") == 2


@pytest.mark.parametrize("code", [0, 1, -signal.SIGKILL])
async def test_one_that_ends_again_and_again_is_started_after_a_growing_pause(
    caplog: pytest.LogCaptureFixture, code: int
) -> None:
    place = Place()
    async with place.slot() as slot:
        await slot.fill()
        for number in (1, 2, 3):
            (await place.until_started(number)).ends(code)
        await place.until_started(4)
        said = [message.rpartition("started")[2] for message in caplog.messages if "a new one" in message]
        assert said == [" in 0.01 s", " in 0.02 s", " in 0.04 s"]


async def test_one_that_takes_long_to_start_is_not_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slots, "_SLOW", 0.02)
    place = Place(starts=False)
    async with place.slot() as slot:
        filling = asyncio.create_task(slot.fill())
        await until_said(caplog, "worker 1 is not ready yet", 2)
        place.started[0].starts = True
        assert await filling is None
        assert place.started[0].signals == []


async def test_what_was_asked_earlier_and_is_answered_later_is_not_taken() -> None:
    place, whole = Place(), Whole()
    async with place.slot(whole) as slot:
        await slot.fill()
        worker = place.started[0]
        looking = asyncio.create_task(slot.look())
        async with asyncio.timeout(30):
            while len(worker.asked) < 2:  # it is looked at anyway, too
                await asyncio.sleep(0.005)
        for count, asked in ((8, worker.asked[1]), (7, worker.asked[0])):
            asked.set_result(f"# TYPE calls_total counter\ncalls_total {count}\n")
            await asyncio.sleep(0.01)
        await looking
        assert b"calls_total 8.0" in whole.exposition()
