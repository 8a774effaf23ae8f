"""Starting and stopping a mounted app by the ASGI lifespan protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message

from microkit.errors import MicrokitError


class MountFailed(MicrokitError):
    """A mounted app said that it could not start, or failed while it stopped."""


@asynccontextmanager
async def lifespan_of(app: ASGIApp, path: str) -> AsyncIterator[None]:
    """Runs the app's lifespan around the block. An app that knows none is left alone, as the protocol wants it.

    Raises:
        MountFailed: it could not start.
    """
    lifespan = _Lifespan(app, path)
    await lifespan.start()
    try:
        yield
    finally:
        await lifespan.stop()


class _Lifespan:
    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(), name=f"lifespan of {path}")
        self._supported = True

    async def start(self) -> None:
        await self._exchange("startup")

    async def stop(self) -> None:
        if self._supported:
            await self._exchange("shutdown")
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        await self._app(scope, self._to_app.get, self._from_app.put)

    async def _exchange(self, phase: str) -> None:
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.ensure_future(self._from_app.get())
        await asyncio.wait({answer, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            self._supported = False  # it raised or returned without a word: it has no lifespan
            return
        message = answer.result()
        if message["type"] == f"lifespan.{phase}.failed":
            raise MountFailed(f"the app mounted at {self._path} failed at {phase}: {message.get('message', '')}")
