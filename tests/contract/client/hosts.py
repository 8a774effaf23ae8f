"""Instances that do as they are told, and a client of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from starlette.types import Receive, Scope, Send

from microkit.client import HttpCaller, Policies, Upstream
from microkit.contract import Contract, get, post
from microkit.discovery.port import Endpoint
from microkit.errors import BadGateway, DeadlineExceeded, RemoteProblem, Unavailable
from microkit.settings.clients import ClientSettings
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Server


class Echo(Contract, service="echo", allow="member"):
    @get("/read/{name}")
    async def read(self, name: str) -> str: ...

    @post("/write")
    async def write(self, body: str) -> str: ...

    @get("/late/{name}", hedge=True)
    async def late(self, name: str) -> str: ...

    @get("/same/{name}", collapse=True)
    async def same(self, name: str) -> str: ...


class Host:
    """One instance. It answers its own name with ``status``, after ``gate`` if there is one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 200
        self.headers: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.delay = 0.0
        self.requests: list[dict[str, str]] = []
        self.left = 0
        self.server = Server(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        self.requests.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if self.gate is not None and not await self._opened(receive):
            return
        await asyncio.sleep(self.delay)
        body = f'"{self.name}"'.encode() if self.status < 400 else b"{}"
        headers = {"content-length": str(len(body)), "content-type": "application/json", **self.headers}
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _opened(self, receive: Receive) -> bool:
        """Whether the gate opened before the client left."""
        assert self.gate is not None
        opened, left = asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(receive())
        await asyncio.wait((opened, left), return_when=asyncio.FIRST_COMPLETED)
        for task in (opened, left):
            task.cancel()
        self.left += not self.gate.is_set()
        return self.gate.is_set()


class Known:
    """A resolver whose list the test changes."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self.endpoints = tuple(endpoints)

    async def resolve(self, _: str) -> Sequence[Endpoint]:
        return self.endpoints


class Fleet:
    """Some hosts and a client of them."""

    def __init__(self, hosts: list[Host], session: aiohttp.ClientSession, settings: dict[str, Any]) -> None:
        self.hosts = hosts
        self.telemetry = Telemetry("caller", ring=TraceRing())
        self.known = Known([Endpoint(host.server.url) for host in hosts])
        # Much time by default: a hundred and fifty calls at once may take theirs on a machine that is busy elsewhere.
        clients = {"echo": ClientSettings(**{"connect_timeout": 30.0, "queue_timeout": 30.0, **settings})}
        self.upstream = Upstream(
            "echo", resolver=self.known, telemetry=self.telemetry, guard=Policies("echo", clients, 60.0).guard()
        )
        caller = HttpCaller(self.upstream, session=session, telemetry=self.telemetry, clients=clients)
        self.echo = Echo(caller)

    @property
    def received(self) -> int:
        return sum(len(host.requests) for host in self.hosts)

    async def reads(self, times: int, at_once: int = 8) -> tuple[int, list[Exception]]:
        """How many were answered, and the errors of the others."""
        gate = asyncio.Semaphore(at_once)

        async def one() -> Exception | None:
            async with gate:
                try:
                    await self.echo.read("x")
                except (RemoteProblem, Unavailable, BadGateway, DeadlineExceeded) as error:
                    return error
                return None

        results = await asyncio.gather(*(one() for _ in range(times)))
        errors = [error for error in results if error is not None]
        return times - len(errors), errors

    def metric(self, name: str) -> float:
        lines = self.telemetry.exposition().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))


Make = Callable[..., Awaitable[Fleet]]


def dead() -> Endpoint:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(f"http://127.0.0.1:{probe.getsockname()[1]}")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
