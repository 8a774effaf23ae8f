"""The desk over HTTP: what the commands ask of a running ``microkit up``, whose memory no other process can look into.

Reading is ``GET``. What changes something is ``POST`` with a JSON body: a page of another origin cannot send that
without a preflight, which nothing here answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import fields
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from microkit.console.desk import Desk, Document, Pace, Rows, Wanted
from microkit.errors import MicrokitError

LINES = "application/x-ndjson"
MOST_BYTES = 64 * 1024

T = TypeVar("T", Wanted, Pace, Rows)


class _Refused(MicrokitError):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def routes(desk: Callable[[], Desk]) -> list[Route]:
    """The routes of the desk. A stream is lines of JSON; one that breaks off ends with ``{"error": …}``."""

    async def letters(request: Request) -> Response:
        query = request.query_params
        wanted = _read(Wanted, {**query, **({"ids": query.getlist("ids")} if "ids" in query else {})}, "whole")
        return _lines(desk().letters(wanted, whole="whole" in query))

    async def redrive(request: Request) -> Response:
        body = await _body(request)
        wanted, pace = _read(Wanted, body.get("wanted", {})), _read(Pace, body.get("pace", {}))
        return _lines(desk().redrive(wanted, pace))

    async def topics(_: Request) -> Response:
        return _json({"topics": await desk().topics()})

    async def lag(request: Request) -> Response:
        query = request.query_params
        return _json({"lag": await desk().lag(query.get("service"), query.get("group"))})

    async def tail(request: Request) -> Response:
        query = request.query_params
        last = query.get("last", "10")
        if not (last.isascii() and last.isdigit() and len(last) < 10):
            raise _Refused(400, "last is a number")
        return _lines(desk().tail(query.get("topic", ""), last=int(last), follow="follow" in query))

    async def outbox(request: Request) -> Response:
        return _json({"outboxes": await desk().outbox(request.query_params.get("service"))})

    async def replay(request: Request) -> Response:
        return _json({"outboxes": await desk().replay(_read(Rows, await _body(request)))})

    async def unpark(request: Request) -> Response:
        return _json({"outboxes": await desk().unpark(_read(Rows, await _body(request)))})

    return [
        Route("/dead-letters", _told(letters)),
        Route("/dead-letters/redrive", _told(redrive), methods=["POST"]),
        Route("/bus/topics", _told(topics)),
        Route("/bus/lag", _told(lag)),
        Route("/bus/tail", _told(tail)),
        Route("/outbox", _told(outbox)),
        Route("/outbox/replay", _told(replay), methods=["POST"]),
        Route("/outbox/unpark", _told(unpark), methods=["POST"]),
    ]


def _told(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        try:
            return await handler(request)
        except (MicrokitError, ConnectionError) as error:
            status = error.status if isinstance(error, _Refused) else 503 if isinstance(error, ConnectionError) else 422
            problem = {"type": "urn:problem:desk", "title": "It cannot be done", "status": status, "detail": str(error)}
            return Response(orjson.dumps(problem), status, media_type="application/problem+json")

    return respond


def _json(document: Document) -> Response:
    return Response(orjson.dumps(document, default=str), media_type="application/json")


def _lines(documents: AsyncGenerator[Document, None]) -> Response:
    async def stream() -> AsyncIterator[bytes]:
        async with aclosing(documents):
            try:
                async for document in documents:
                    yield _line(document)
            except (MicrokitError, ConnectionError) as error:
                yield _line({"error": str(error)})

    return StreamingResponse(stream(), media_type=LINES)


def _line(document: Document) -> bytes:
    return orjson.dumps(document, default=str) + b"\n"


async def _body(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _Refused(415, "send application/json")
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST_BYTES:
            raise _Refused(413, f"at most {MOST_BYTES} bytes")
    try:
        body = orjson.loads(raw or b"{}")
    except orjson.JSONDecodeError as error:
        raise _Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise _Refused(400, "the body is an object")
    return body


def _read(cls: type[T], given: Any, *others: str) -> T:
    known = {field.name for field in fields(cls)}
    if not isinstance(given, dict) or not given.keys() <= known | set(others):
        raise _Refused(400, f"it may say: {', '.join(sorted(known))}")
    try:
        return TypeAdapter(cls).validate_python({name: value for name, value in given.items() if name in known})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _Refused(400, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
