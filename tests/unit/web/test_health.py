"""Health: states, parts, and probes that do not answer."""

from __future__ import annotations

import asyncio

import pytest

from microkit.errors import DefinitionError
from microkit.web import Health, State
from microkit.web import health as module

pytestmark = pytest.mark.anyio


async def test_probes_are_asked_once_for_many_who_want_to_know() -> None:
    health = Health()
    asked = 0

    async def probe() -> dict[str, int]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return {"lag": 3}

    health.part("relay", probe)
    reports = await asyncio.gather(*(health.report() for _ in range(10)))
    assert asked == 1
    assert reports[0]["relay"].details == {"lag": 3}
    await health.report()
    assert asked == 1


async def test_a_probe_that_hangs_is_down_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.05)
    health = Health()
    health.state = State.READY

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def fine() -> None: ...

    health.part("hangs", hangs)
    health.part("fine", fine)
    reports = await health.report()
    assert not reports["hangs"].up
    assert reports["hangs"].details == {"error": "no answer in 0.05 s"}
    assert reports["fine"].up
    assert not await health.ready()


async def test_an_impatient_prober_does_not_end_the_question_for_the_others() -> None:
    health = Health()
    answer = asyncio.Event()

    async def probe() -> None:
        await answer.wait()

    health.part("slow", probe)
    impatient = asyncio.create_task(health.report())
    patient = asyncio.create_task(health.report())
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    answer.set()
    assert (await patient)["slow"].up


async def test_only_a_part_that_a_restart_mends_ends_life() -> None:
    health = Health()

    async def down() -> None:
        raise ConnectionError("away")

    health.part("database", down)
    assert await health.live()
    health.part("consumer", down, liveness=True)
    assert not await health.live()


async def test_a_part_that_is_added_later_is_asked_at_once() -> None:
    health = Health()
    health.state = State.READY
    assert await health.ready()

    async def down() -> None:
        raise ConnectionError("away")

    health.part("database", down)
    assert not await health.ready()
    with pytest.raises(DefinitionError, match="'database' already"):
        health.part("database", down)
