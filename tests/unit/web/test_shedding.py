"""How the queue before the database is counted: each request once, and as refused where it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from microkit.auth.principal import Principal
from microkit.telemetry import Telemetry
from microkit.web import shedding
from microkit.web.access import Access
from microkit.web.limits import Limits
from microkit.web.shedding import CRITICAL, PRIORITY, Entrance

pytestmark = pytest.mark.anyio


class Queue:
    """A database before which one waits for ``wait`` seconds, and a clock."""

    reads_apart = False
    dialect = "postgresql"

    def __init__(self) -> None:
        self.wait = 0.0
        self.now = 1000.0

    def expected_wait(self, *, read_only: bool = False) -> float:
        return self.wait

    def typical_use(self, *, read_only: bool = False) -> float:
        return 0.001

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(shedding, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


@pytest.fixture
async def entrance(queue: Queue, anyio_backend: str) -> AsyncIterator[Entrance]:
    async def verify(token: str) -> Principal:
        return Principal("service:payment", frozenset({"service"}), token)

    database: object = queue
    made = Entrance(Limits(queue=1.0), Telemetry("told"), Access(verify), database)  # type: ignore[arg-type]  # a queue
    yield made
    made.close()


async def come(entrance: Entrance, *, critical: bool = False) -> bool:
    """Whether one that takes a ``Transaction`` is let in, and done."""
    headers = {PRIORITY: CRITICAL, b"authorization": b"Bearer t"} if critical else {}
    inside = entrance.enter_now(0.0, transacts="writes") or not await entrance.enter(0.0, headers, transacts="writes")
    if inside:
        entrance.leave(0.001)
    return inside


async def interval(entrance: Entrance, queue: Queue, waits: list[float], *, critical: bool = False) -> list[bool]:
    """Who is let in of those that come, each with another queue before it, in a tenth of a second."""
    found = []
    for queue.wait in waits:
        found.append(await come(entrance, critical=critical))
    queue.now += 0.11
    return found


async def overloaded(entrance: Entrance, queue: Queue) -> None:
    assert await interval(entrance, queue, [1.5]) == [False]
    assert await interval(entrance, queue, [1.5, 0.0]) == [False, True]  # the first of them ends the interval before


async def test_a_fifth_that_is_refused_counts_as_a_fifth(entrance: Entrance, queue: Queue) -> None:
    """More than a quarter would keep the wait short."""
    await overloaded(entrance, queue)
    assert await interval(entrance, queue, [0.0] * 8 + [0.5] * 2) == [True] * 8 + [False] * 2
    assert await interval(entrance, queue, [0.0, 0.03]) == [True, True], "twice as long as under overload"


async def test_what_is_critical_and_let_in_is_not_counted_as_refused(entrance: Entrance, queue: Queue) -> None:
    await overloaded(entrance, queue)
    assert await interval(entrance, queue, [0.0] + [0.5] * 9, critical=True) == [True] * 10
    assert await interval(entrance, queue, [0.0, 0.03]) == [True, True]


async def test_a_third_that_is_refused_keeps_the_wait_short(entrance: Entrance, queue: Queue) -> None:
    await overloaded(entrance, queue)
    for _ in range(10):
        assert await interval(entrance, queue, [0.0] * 6 + [0.5] * 4) == [True] * 6 + [False] * 4
    assert await interval(entrance, queue, [0.0, 0.03]) == [True, False]
