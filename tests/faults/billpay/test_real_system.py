"""``microkit up --real``: each process of billpay, its database server and its broker killed in turn.

Each is started again, and ``microkit demo`` then finds everything as it should be: nobody helps, nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from microkit.servers.ports import free_ports
from microkit.testing.folder import short_lived
from reference.billpay.system import system

pytestmark = pytest.mark.anyio

FULL = os.environ.get("MICROKIT_FAULTS") == "full"
SERVICES = [service.name for service in system.services]


@dataclass
class RealSystem:
    """The command as a process, and its console."""

    folder: Path
    process: asyncio.subprocess.Process
    console: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    async def processes(self) -> dict[str, dict[str, Any]]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.console}/fleet") as response:
            return {process["name"]: process for process in (await response.json())["processes"]}

    async def kill(self, name: str) -> None:
        """Kills a process with SIGKILL, and waits until another has taken its place and all are ready."""
        before = (await self.processes())[name]["restarts"]
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.console}/fleet/{name}/end", json={"by": "SIGKILL"}) as response,
        ):
            assert response.status == 200, await response.text()
        async with asyncio.timeout(60):
            while (await self.processes())[name]["restarts"] == before:
                await asyncio.sleep(0.05)
        await self.until_ready()

    async def until_ready(self) -> None:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            for process in (await self.processes()).values():
                while process["kind"] == "service" and not await is_ready(session, process["url"]):
                    await asyncio.sleep(0.05)

    async def command(self, *arguments: str) -> dict[str, Any]:
        """What a command prints as JSON about the running system."""
        command = [sys.executable, "-m", "microkit.cli", *arguments, "--json", "--folder", str(self.folder)]
        told = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await told.communicate()
        assert out, err.decode()[-2000:]
        document: dict[str, Any] = json.loads(out)
        return document


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@pytest.fixture(params=["redis", *(["kafka"] if FULL else [])])
async def real(request: pytest.FixtureRequest, short_folder: Path) -> AsyncIterator[RealSystem]:
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = {
        **os.environ,
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
        "LEDGER_CLOSE_INTERVAL": "200ms",
        "PAYMENT_HORIZON_URL": f"http://127.0.0.1:{ports['ledger']}",
    }
    command = [sys.executable, "-m", "microkit.cli", "up", "--real", "--json", "--console-port", "0"]
    options = ["--folder", str(short_folder), "--bus", request.param]
    for service in SERVICES if FULL else ():
        options += ["--scale", f"{service}=2"] if service != "ledger" else []
    log = short_folder / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, *options, stdout=asyncio.subprocess.PIPE, stderr=errors, env=environment
        )
    assert process.stdout is not None
    announced = await asyncio.wait_for(process.stdout.readline(), 120)
    assert announced, log.read_text()[-4000:]
    yield RealSystem(short_folder, process, json.loads(announced)["console"])
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 60) == 0, log.read_text()[-4000:]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with short_lived("mkreal-") as folder:
        yield folder


@pytest.mark.timeout(600)
async def test_whatever_is_killed_is_started_again_and_recovers_without_help(real: RealSystem) -> None:
    first = await real.command("demo")
    assert first["ok"], first
    for name in await real.processes() if FULL else ["payment", "postgresql", "redis"]:
        await real.kill(name)
        if FULL:
            again = await real.command("demo")
            assert again["ok"], (name, again)
    last = await real.command("demo")
    assert last["ok"], last
    drilled = await real.command("drill", "--restarts", "2", "--rate", "20", "--kill")
    assert drilled["ok"], drilled


@pytest.mark.skipif(not FULL, reason="two of each service, and a hundred restarts of each kind: the full form")
@pytest.mark.timeout(1200)
async def test_restarts_are_not_noticed_and_kills_lose_nothing(real: RealSystem) -> None:
    rolling = await real.command("drill", "--restarts", "100", "--rate", "100")
    assert rolling["ok"], rolling
    killed = await real.command("drill", "--restarts", "100", "--rate", "100", "--kill")
    assert killed["ok"], killed
