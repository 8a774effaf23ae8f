"""How admin endpoints answer, and to whom."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

_LOOPBACK: Final = ["127.0.0.1", "localhost", "[::1]"]


def guard(*, loopback: bool) -> list[Middleware]:
    """What stands before endpoints that are reached from this machine only, if they are."""
    return [Middleware(TrustedHostMiddleware, allowed_hosts=_LOOPBACK)] if loopback else []


def answered(document: dict[str, Any], status: int = 200) -> Response:
    """A document, which nobody keeps."""
    body = orjson.dumps(document, default=str)
    return Response(body, status, {"cache-control": "no-store"}, media_type="application/json")


def problem(status: int, title: str, detail: str) -> Response:
    """A problem document (RFC 9457)."""
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Response(orjson.dumps(document), status, media_type="application/problem+json")
