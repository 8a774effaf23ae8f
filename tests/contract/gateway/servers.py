"""Servers for a gateway to stand before, and for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from microkit.web import Server

App = Callable[..., Awaitable[None]]
Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(app: App, **options: Any) -> AsyncIterator[str]:
    """The URL of a server of ours that serves ``app``."""
    server = Server(app, websockets=True, **options)
    await server.start()
    try:
        yield server.url
    finally:
        await server.stop(0)


@asynccontextmanager
async def behaving(behaviour: Behaviour) -> AsyncIterator[str]:
    """A server that does to each connection what ``behaviour`` says, however wrong."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behaviour(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await server.wait_closed()
