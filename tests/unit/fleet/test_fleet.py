"""The servers of a fleet are started again for as long as it lives."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from microkit import Service, System
from microkit.errors import ConfigurationError
from microkit.fleet import fleet as fleets
from microkit.fleet.copies import Copy
from microkit.fleet.fleet import Fleet

pytestmark = pytest.mark.anyio


class Server:
    """One that cannot be started for several reasons, one after the other."""

    name = "PostgreSQL"

    def __init__(self) -> None:
        self.running = False
        self.reasons: list[Exception] = [
            ConfigurationError("the port is taken"),
            OSError(24, "Too many open files"),
            subprocess.CalledProcessError(1, "initdb"),
        ]

    def start(self) -> None:
        if self.reasons:
            raise self.reasons.pop(0)
        self.running = True


async def test_a_server_that_cannot_be_started_is_tried_again_whatever_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleets, "_WATCH", 0.01)
    server, said = Server(), list[str]()
    servers: Any = {"postgresql": server}
    fleet = Fleet(System("tiny", services=[Service("alpha")]), {}, servers, [], lambda _, line: said.append(line))
    watching = asyncio.create_task(fleet._watch_servers())
    async with asyncio.timeout(30):
        while not server.running:
            await asyncio.sleep(0.005)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    reasons = ("the port is taken", "Too many open files", "initdb")
    assert all(any(reason in line for line in said) for reason in reasons)


class Ending:
    """A process that ends in the way that the test says."""

    def __init__(self, name: str, trouble: Exception | None, ended: list[str]) -> None:
        self.copy = Copy(name, 1, "http://127.0.0.1:1")
        self._trouble = trouble
        self._ended = ended

    async def stop(self, _: float) -> None:
        if self._trouble is not None:
            raise self._trouble
        await asyncio.sleep(0.01)
        self._ended.append(self.copy.name)


async def test_the_trouble_of_one_process_lets_the_others_drain() -> None:
    ended = list[str]()
    system = System("tiny", services=[Service("alpha"), Service("beta")])
    children: Any = [Ending("alpha", OSError(28, "No space left on device"), ended), Ending("beta", None, ended)]
    settings: Any = {service.name: service.settings() for service in system.services}
    with pytest.raises(OSError, match="No space"):
        await Fleet(system, settings, {}, children, lambda *_: None)._stop()
    assert ended == ["beta"]
