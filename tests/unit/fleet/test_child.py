"""A process of a service that ends is started again: at once when it was told to end, later when it ends by itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from microkit.fleet import child as children
from microkit.fleet.child import Child
from microkit.fleet.copies import Copy

pytestmark = pytest.mark.anyio


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of a service that is there as soon as it is started, and ends when the test says so."""

    async def ready(_: Any, url: str) -> bool:
        return True

    monkeypatch.setattr(children, "is_ready", ready)
    monkeypatch.setattr(children, "_SHORTEST_PAUSE", 0.01)
    return []


async def started(said: list[str], monkeypatch: pytest.MonkeyPatch, script: str) -> Child:
    """One that was started, and whose process runs the shell's ``script``."""
    exec_ = asyncio.create_subprocess_exec

    async def start(*_: str, **options: Any) -> asyncio.subprocess.Process:
        return await exec_("sh", "-c", script, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    made = Child(Copy("alpha", 1, "http://127.0.0.1:1"), "tiny:system", lambda _, line: said.append(line))
    session: Any = None  # only is_ready asks with it
    await made.start(session, 30)
    return made


async def until_said(said: list[str], text: str) -> None:
    async with asyncio.timeout(30):
        while not any(text in line for line in said):
            await asyncio.sleep(0.005)


async def test_one_that_ends_again_and_again_in_order_is_started_after_a_growing_pause(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await started(said, monkeypatch, "exit 0")
    await until_said(said, "a new one is started in 0.08 s")
    await alpha.stop(30)
    assert said[:3] == [f"the process ended with code 0; a new one is started in {n} s" for n in (0.01, 0.02, 0.04)]


async def test_one_that_was_told_to_end_is_started_when_that_was_asked_for(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await started(said, monkeypatch, "exec sleep 600")
    for away in (0.0, 0.02):
        assert alpha.end(signal.SIGKILL, away) is not None
        async with asyncio.timeout(30):
            while alpha.restarts < 1 + (away > 0):
                await asyncio.sleep(0.005)
    await alpha.stop(30)
    assert said == [
        "the process was ended by SIGKILL; a new one is started",
        "the process was ended by SIGKILL; a new one is started in 0.02 s",
    ]


async def test_where_no_process_can_be_started_it_is_tried_again(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await started(said, monkeypatch, "exec sleep 600")
    spawn, refusals = alpha._spawn, iter([BlockingIOError(11, "no process is left")] * 2)

    async def refusing() -> asyncio.Task[None]:
        for error in refusals:
            raise error
        return await spawn()

    monkeypatch.setattr(alpha, "_spawn", refusing)
    alpha.end(signal.SIGKILL)
    async with asyncio.timeout(30):
        while not alpha.restarts:
            await asyncio.sleep(0.005)
    await alpha.stop(30)
    assert [line.partition(" (")[0] for line in said[1:]] == ["no process can be started"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say whose children there are")
async def test_a_kill_takes_the_workers_along_that_would_drain(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the end of a container does: a drill that lets them finish would have shown nothing."""
    worker = f"trap 'echo drained > {tmp_path}/drained' TERM; echo worker; for _ in $(seq 1200); do sleep 0.05; done"
    alpha = await started(said, monkeypatch, f'sh -c "{worker.replace("$", chr(92) + "$")}" & wait')
    await until_said(said, "worker")
    alpha.end(signal.SIGKILL, 600)
    await until_said(said, "was ended by SIGKILL")  # which is said when the worker has closed their log, too
    await alpha.stop(30)
    assert not [*tmp_path.iterdir()]  # noqa: ASYNC240  nothing else happens


async def test_a_process_made_while_it_is_told_to_stop_is_not_left_behind(
    said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await started(said, monkeypatch, "exec sleep 600")
    spawn, making, go_on = alpha._spawn, asyncio.Event(), asyncio.Event()

    async def slowly() -> asyncio.Task[None]:
        making.set()
        await go_on.wait()
        return await spawn()

    monkeypatch.setattr(alpha, "_spawn", slowly)
    alpha.end(signal.SIGKILL)
    async with asyncio.timeout(30):
        await making.wait()
        stopping = asyncio.create_task(alpha.stop(30))
        await asyncio.sleep(0)
        go_on.set()
        await stopping
    assert alpha.pid is None
