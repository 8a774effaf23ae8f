"""The desk of a running ``microkit up``, asked through its console."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Final

import aiohttp
import orjson

from microkit.console.desk import Document, Pace, Rows, Wanted
from microkit.errors import ConfigurationError, MicrokitError

_PATIENCE: Final = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=None)


class RemoteDesk:
    """A :class:`~microkit.console.desk.Desk` over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, console: str) -> None:
        self._session = session
        self._console = console

    async def letters(self, wanted: Wanted, *, whole: bool = False) -> AsyncGenerator[Document, None]:
        query = _query({**asdict(wanted), **({"whole": "1"} if whole else {})})
        async for document in self._lines("GET", "/dead-letters", query=query):
            yield document

    async def redrive(self, wanted: Wanted, pace: Pace) -> AsyncGenerator[Document, None]:
        body = {"wanted": asdict(wanted), "pace": asdict(pace)}
        async for document in self._lines("POST", "/dead-letters/redrive", body=body):
            yield document

    async def topics(self) -> list[Document]:
        return await self._list("topics", "GET", "/bus/topics")

    async def lag(self, service: str | None, group: str | None) -> list[Document]:
        return await self._list("lag", "GET", "/bus/lag", query=_query({"service": service, "group": group}))

    async def tail(self, topic: str, *, last: int, follow: bool) -> AsyncGenerator[Document, None]:
        query = _query({"topic": topic, "last": str(last), **({"follow": "1"} if follow else {})})
        async for document in self._lines("GET", "/bus/tail", query=query):
            yield document

    async def outbox(self, service: str | None) -> list[Document]:
        return await self._list("outboxes", "GET", "/outbox", query=_query({"service": service}))

    async def replay(self, rows: Rows) -> list[Document]:
        return await self._list("outboxes", "POST", "/outbox/replay", body=_body(rows))

    async def unpark(self, rows: Rows) -> list[Document]:
        return await self._list("outboxes", "POST", "/outbox/unpark", body=_body(rows))

    async def _list(
        self, name: str, method: str, path: str, *, query: Any = None, body: Mapping[str, Any] | None = None
    ) -> list[Document]:
        async with self._asked(method, path, query, body) as response:
            found: list[Document] = orjson.loads(await response.read())[name]
            return found

    async def _lines(
        self, method: str, path: str, *, query: Any = None, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Document]:
        async with self._asked(method, path, query, body) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    document = orjson.loads(line)
                    if document.keys() == {"error"}:
                        raise MicrokitError(document["error"])
                    yield document

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, query: Any, body: Mapping[str, Any] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} if data is not None else {}
        try:
            async with self._session.request(
                method, self._console + path, params=query, data=data, headers=headers
            ) as response:
                if response.status != 200:
                    raise MicrokitError(_why(response.status, await response.read()))
                yield response
        except aiohttp.ClientError as error:
            raise ConfigurationError(
                f"The console at {self._console} broke off: {error}; does `microkit up` run?"
            ) from None


@asynccontextmanager
async def remote_desk(console: str) -> AsyncIterator[RemoteDesk]:
    """The desk behind a console's URL."""
    async with aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False) as session:
        yield RemoteDesk(session, console)


def _query(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            pairs += [(name, each) for each in value]
        elif value is not None:
            pairs.append((name, value))
    return pairs


def _body(rows: Rows) -> Document:
    return {**asdict(rows), "since": rows.since.isoformat() if rows.since else None}


def _why(status: int, body: bytes) -> str:
    try:
        return str(orjson.loads(body)["detail"])
    except (ValueError, LookupError, TypeError):
        return f"The console answered {status}"
