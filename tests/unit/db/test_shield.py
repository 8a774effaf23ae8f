from __future__ import annotations

import asyncio

import anyio
import pytest

from microkit.db.shield import finish

pytestmark = pytest.mark.anyio


async def test_what_fails_fails_for_the_caller() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finish(fail())


async def test_the_work_ends_however_often_its_caller_is_cancelled() -> None:
    ended = asyncio.Event()
    go = asyncio.Event()

    async def work() -> None:
        await go.wait()
        ended.set()

    task = asyncio.create_task(finish(work()))
    for _ in range(5):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_the_work_ends_inside_a_cancelled_scope() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        await asyncio.sleep(0.01)
        ended = True

    with anyio.CancelScope() as scope:
        scope.cancel()
        await finish(work())
    assert scope.cancelled_caught
    assert ended


async def test_work_that_does_not_end_is_cut_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microkit.db.shield.GRACE", 0.01)
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(finish(work(), cut=lambda: seen.append("cut")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cut", "cancelled"]
