"""The processes of a fleet over HTTP: which there are, and how one is ended, so that a drill can see what happens.

What ends a process is ``POST`` with a JSON body: a page of another origin cannot send that without a preflight, which
nothing here answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microkit.fleet import Fleet

_SIGNALS: Final = ("SIGTERM", "SIGKILL")
_LONGEST_AWAY: Final = 3600


def routes(fleet: Callable[[], Fleet | None]) -> list[Route]:
    """``GET /fleet`` and ``POST /fleet/NAME/end`` with ``{"by": "SIGTERM"}`` or ``"SIGKILL"``, and ``"away"``: seconds
    until it is started again."""

    async def processes(_: Request) -> Response:
        found = fleet()
        copies = [] if found is None else found.processes()
        return _json({"processes": copies})

    async def end(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _problem(415, "send application/json")
        try:
            asked = orjson.loads(await request.body() or b"{}")
            by, away = asked.get("by"), asked.get("away", 0)
        except (orjson.JSONDecodeError, AttributeError):
            by, away = None, 0
        if by not in _SIGNALS:
            return _problem(400, f'say how: {{"by": "SIGTERM"}}, or one of {", ".join(_SIGNALS)}')
        if not isinstance(away, int | float) or not 0 <= away <= _LONGEST_AWAY:
            return _problem(400, f"away is a number of seconds, up to {_LONGEST_AWAY}")
        found = fleet()
        name = request.path_params["name"]
        pid = None if found is None else found.end(name, by, away)
        return _problem(404, f"no process called {name} runs") if pid is None else _json({"name": name, "pid": pid})

    return [Route("/fleet", processes), Route("/fleet/{name}/end", end, methods=["POST"])]


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    document = {"type": "urn:problem:fleet", "title": "It cannot be done", "status": status, "detail": detail}
    return Response(orjson.dumps(document), status, media_type="application/problem+json")
