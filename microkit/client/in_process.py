"""Calls an ASGI app in the same process, without a socket: for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar
from urllib.parse import unquote

from starlette.types import ASGIApp

from microkit.auth.issuer import ServiceTokens
from microkit.client.codec import OperationCodec, WireAnswer, WireRequest
from microkit.client.outgoing import outgoing_headers, time_allowed
from microkit.context import WorkContext, current, enter, leave
from microkit.contract import Operation
from microkit.errors import DeadlineExceeded

R = TypeVar("R")


class InProcessCaller:
    """Carries out calls by speaking ASGI to ``app``, which must have been started.

    A call carries ``bearer`` where given, else what a call over HTTP would. What the app raises comes out as it is.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        bearer: str | None = None,
        tokens: ServiceTokens | None = None,
        timeout: float = 10.0,
        client: tuple[str, int] = ("127.0.0.1", 50000),
    ) -> None:
        self._app = app
        self._bearer = bearer
        self._tokens = tokens
        self._timeout = timeout
        self._client = client
        self._codecs: dict[Operation[..., Any], OperationCodec[Any]] = {}

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        codec: OperationCodec[R] | None = self._codecs.get(operation)
        if codec is None:
            codec = self._codecs[operation] = OperationCodec(operation)
        context = current()
        wire = codec.request(arguments)
        seconds = time_allowed(operation, context, self._timeout)
        wire.headers.update(outgoing_headers(operation, context, seconds, self._tokens))
        if self._bearer is not None:
            wire.headers["Authorization"] = f"Bearer {self._bearer}"
        token = enter(WorkContext())  # the app sees what the wire carries, and nothing of the caller's context
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ask(wire)
        except TimeoutError:
            raise DeadlineExceeded(f"{operation.qualified_name} took longer than {seconds:.3g} s") from None
        finally:
            leave(token)
        return codec.result(answer)

    async def _ask(self, wire: WireRequest) -> WireAnswer:
        status = 0
        headers: dict[str, str] = {}
        body = bytearray()
        sent = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # the client stays connected until it has its answer
            sent = True
            return {"type": "http.request", "body": wire.body or b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.update(
                    {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}
                )
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))

        await self._app(self._scope(wire), receive, send)
        return WireAnswer(status, bytes(body), headers.get("retry-after"))

    def _scope(self, wire: WireRequest) -> dict[str, Any]:
        path, _, query = wire.target.partition("?")
        headers = {"host": "in-process", "content-length": str(len(wire.body or b"")), **wire.headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": wire.method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
            "client": self._client,
            "server": ("in-process", 80),
            "state": {},
        }
