"""nginx' own refusals as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from microkit.errors import (
    BadGateway,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    HeadersTooLarge,
    InternalError,
    MethodNotAllowed,
    MisdirectedRequest,
    NotFound,
    Problem,
    RequestTimeout,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UrlTooLong,
)
from microkit.gateway.rendering.nginx.text import Variable, worded

PROBLEMS: Final[dict[int, type[Problem]]] = {
    one.status: one
    for one in (
        BadGateway,
        BadRequest,
        BodyTooLarge,
        DeadlineExceeded,
        Forbidden,
        HeadersTooLarge,
        InternalError,
        MethodNotAllowed,
        MisdirectedRequest,
        NotFound,
        RequestTimeout,
        TooManyRequests,
        Unauthorized,
        Unavailable,
        UrlTooLong,
    )
}
_OTHERS: Final = (411, 415, 416, 417, 501, 505)
"""What nginx answers besides, and no problem of ours stands for."""

_AS: Final = {494: 431, 495: 400, 496: 400, 497: 400}
"""nginx' own codes: headers too large, a client's certificate, plain text to a TLS port."""

_AT: Final = "/.microkit/problem"


def statuses() -> list[int]:
    return sorted({*PROBLEMS, *_OTHERS})


def error_pages(changed: Mapping[int, int] | None = None) -> list[tuple[str, ...]]:
    """The words of the directives that make refusals problem documents. ``changed`` are told as other ones."""
    others = _AS | dict(changed or {})
    same = [str(status) for status in statuses() if status not in others]
    return [
        ("error_page", *same, f"{_AT}/$status"),
        *(("error_page", str(status), f"={other}", f"{_AT}/{other}") for status, other in others.items()),
    ]


def document(status: int, detail: str = "") -> str:
    """The word for a problem document. ``$mk_instance`` and the others hold only what JSON can hold as it is."""
    problem = PROBLEMS.get(status)
    kind, title = (problem.type, problem.title) if problem else ("about:blank", HTTPStatus(status).phrase)
    members = {"type": kind, "title": title, "status": status} | ({"detail": detail} if detail else {})
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return worded(text[:-1], ',"instance":"', Variable("mk_instance"), '"', Variable("mk_trace_member"), "}")
