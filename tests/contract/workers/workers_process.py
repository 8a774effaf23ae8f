"""``microkit run`` with several workers, as a process; and a load on it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from microkit.servers.ports import free_ports

SYSTEM = """
import asyncio, os
from starlette.responses import JSONResponse, Response
from microkit import ANYONE, Service, System

alpha = Service("alpha", port={port})

@alpha.get("/hello", allow=ANYONE)
async def hello() -> Response:
    return JSONResponse({{"pid": os.getpid()}})

@alpha.get("/slow", allow=ANYONE)
async def slow() -> Response:
    await asyncio.sleep(1)
    return JSONResponse({{"pid": os.getpid()}})

@alpha.get("/endless", allow=ANYONE)
async def endless() -> Response:
    await asyncio.sleep(60)
    return JSONResponse({{"pid": os.getpid()}})

@alpha.get("/stuck", allow=ANYONE)
async def stuck() -> Response:
    import time
    time.sleep(600)
    return JSONResponse({{}})

system = System("tiny", services=[alpha])
"""

ALL = "http_server_request_duration_seconds_count"


@dataclass
class Run:
    """The command, and what it logged so far."""

    process: asyncio.subprocess.Process
    url: str
    admin: str
    lines: list[str] = field(default_factory=list)

    async def get(self, url: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith("{") else text

    async def level(self, wanted: str | None = None) -> str | None:
        """The log level of all workers, after it was set to what is ``wanted``; ``None`` where they differ."""
        async with aiohttp.ClientSession() as session:
            url = f"{self.admin}/log-level"
            asking = session.get(url) if wanted is None else session.put(url, json={"level": wanted})
            async with asking as answer:
                assert answer.status == 200, await answer.text()
                found: str | None = (await answer.json())["level"]
                return found

    async def pids(self) -> list[int]:
        """Of the workers that are ready, by number."""
        _, document = await self.get(f"{self.admin}/health")
        return [worker["pid"] for worker in document["workers"] if worker.get("state") == "ready"]

    async def until_workers(self, number: int, *, without: int = 0) -> list[int]:
        async with asyncio.timeout(60):
            while len(found := await self.pids()) != number or without in found:
                await asyncio.sleep(0.05)
        return found

    async def scraped(self, *, admin: bool = False) -> dict[str, float]:
        """A scrape: every sample by its name and labels."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin if admin else self.url}/metrics") as answer,
        ):
            assert answer.status == 200
            text = await answer.text()
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        assert len({name for name, _, _ in lines}) == len(lines), "a series is there twice"
        return {name: float(value) for name, _, value in lines}

    async def counted(self, route: str) -> int:
        """How many requests a scrape says there were."""
        samples = await self.scraped(admin=True)
        return int(sum(n for name, n in samples.items() if name.startswith(ALL) and f'http_route="{route}"' in name))

    async def until_active(self, number: int) -> None:
        """Returns when so many requests are under way."""
        async with asyncio.timeout(60):
            while True:
                samples = await self.scraped(admin=True)
                if sum(n for name, n in samples.items() if name.startswith("http_server_active_requests")) >= number:
                    return
                await asyncio.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 60)

    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.lines if line.startswith("{")]


@dataclass
class Load:
    """Requests, each on a connection of its own, one after the other in several lines."""

    answers: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    async def send(self, url: str, stop: asyncio.Event, most: int = 1_000_000, *, pause: float = 0.0) -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while not stop.is_set() and len(self.answers) + len(self.broken) < most:
                try:
                    async with session.get(url) as answer:
                        await answer.read()
                        self.answers.append(answer.status)
                except aiohttp.ClientError as error:
                    self.broken.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(pause)

    @asynccontextmanager
    async def on(self, url: str, lines: int = 3) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for _ in range(lines):
                group.create_task(self.send(url, stop, pause=0.01))  # a new worker needs the processor, too
            try:
                yield
            finally:
                stop.set()

    async def until(self, number: int) -> None:
        """Returns when so many more were answered."""
        goal = len(self.answers) + number
        async with asyncio.timeout(60):
            while len(self.answers) < goal:
                await asyncio.sleep(0.01)


def system_in(folder: Path, port: int) -> None:
    (folder / "tiny.py").write_text(SYSTEM.format(port=port))


@asynccontextmanager
async def service_process(
    folder: Path, env: Mapping[str, str], workers: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """``microkit run alpha`` of the folder's ``tiny:system``, ready; and the lines that it logs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "microkit.cli", "run", "alpha", "--system", "tiny:system",
        cwd=folder,
        env={**os.environ, "ALPHA_WORKERS": str(workers), **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    ready = asyncio.Event()

    async def read(stdout: asyncio.StreamReader) -> None:
        async for line in stdout:
            lines.append(line.decode().rstrip())
            if re.search(r'"message":"ready".*"workers":' if workers > 1 else '"message":"ready"', lines[-1]):
                ready.set()

    reading = asyncio.create_task(read(process.stdout))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({reading, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert ready.is_set(), "\n".join(lines)
        yield process, lines
    finally:
        waiting.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


@asynccontextmanager
async def run(folder: Path, workers: int, env: Mapping[str, str] | None = None) -> AsyncIterator[Run]:
    """``microkit run alpha`` with so many workers, ready."""
    port, admin = free_ports(2)
    system_in(folder, port)
    told = {"ALPHA_ADMIN_PORT": str(admin), "ALPHA_ACCESS_LOG": "false", **(env or {})}
    async with service_process(folder, told, workers) as (process, lines):
        yield Run(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", lines)
