"""The load balancer that stands before a system's gateways in production: here, a part of who sends the requests."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import aiohttp
import orjson

from microkit.drill.load import Outgoing
from microkit.errors import MicrokitError, Unavailable

_CHECK: Final = 0.1
"""Seconds between two looks at whether a gateway is ready."""

_PATIENCE: Final = 20.0
"""Seconds until a bus must be readable."""

_ANSWER: Final = aiohttp.ClientTimeout(total=30)
"""How long one answer may take: three times what services give themselves. Who is frozen does not hold up the drill."""

_ALL_EVENTS: Final = aiohttp.ClientTimeout(total=300)
"""How long it may take to read all that a topic has: as long as it is long."""

_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Front:
    """Sends to the gateways at ``urls`` in turn, first to those that say they are ready; to another where no connection
    could be made. Nothing is sent twice."""

    def __init__(self, urls: Sequence[str], console: str) -> None:
        self._urls = list(urls)
        self._console = console
        self._ready = list(urls)
        self._turn = itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self._checking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_ANSWER, trust_env=False)
        self._checking = asyncio.create_task(self._check())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait([self._checking])
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("it is not open")
        return self._session

    async def send(self, outgoing: Outgoing) -> tuple[int, Any]:
        """See :meth:`~microkit.drill.load.Door.send`.

        Raises:
            Unavailable: no gateway takes a connection.
            aiohttp.ClientError: the answer was lost.
        """
        data = None if outgoing.body is None else orjson.dumps(outgoing.body)
        headers = {**outgoing.headers, **({} if data is None else {"Content-Type": "application/json"})}
        for url in self._in_turn():
            try:
                async with self.session.request(
                    outgoing.method, url + outgoing.path, data=data, headers=headers, allow_redirects=False
                ) as response:
                    raw = await response.read()
                    return response.status, _parsed(raw)
            except _NOT_SENT:
                continue
        raise Unavailable("no gateway takes a connection")

    def _in_turn(self) -> list[str]:
        """Those that are ready first; what is known of them is old where an answer to the question took long."""
        ready = self._ready
        first = next(self._turn) % max(1, len(ready))
        return [*ready[first:], *ready[:first], *(url for url in self._urls if url not in ready)]

    async def events(self, topic: str) -> list[Mapping[str, Any]]:
        """See :meth:`~microkit.drill.load.Door.events`. A bus that has just been restarted is asked again.

        Raises:
            MicrokitError: the bus cannot be read.
        """
        query = {"topic": topic, "last": "999999999"}
        until = time.monotonic() + _PATIENCE
        while True:
            async with self.session.get(f"{self._console}/bus/tail", params=query, timeout=_ALL_EVENTS) as response:
                found: list[Mapping[str, Any]] = [orjson.loads(line) for line in (await response.read()).splitlines()]
            if not found or found[-1].keys() != {"error"}:
                return found
            if time.monotonic() > until:
                raise MicrokitError(f"The events of {topic} cannot be read: {found[-1]['error']}")
            await asyncio.sleep(_CHECK)

    async def _check(self) -> None:
        while True:
            answers = await asyncio.gather(*(self._is_ready(url) for url in self._urls))
            self._ready = [url for url, ready in zip(self._urls, answers, strict=True) if ready]
            await asyncio.sleep(_CHECK)

    async def _is_ready(self, url: str) -> bool:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.session.get(f"{url}/health/ready", timeout=aiohttp.ClientTimeout(total=2)) as response:
                return response.status == 200
        return False


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return None
