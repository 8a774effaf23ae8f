"""Problem documents (RFC 9457): what a caller reads when a request did not succeed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote

import orjson
from pydantic import ValidationError
from pydantic_core import to_jsonable_python
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from microkit.db import CommitUnknown
from microkit.errors import (
    BadGateway,
    BadRequest,
    DeadlineExceeded,
    InternalError,
    Problem,
    RemoteProblem,
    ValidationFailed,
)

MEDIA_TYPE: Final = b"application/problem+json"
PROBLEM_HEADERS: Final = (
    (b"content-type", MEDIA_TYPE),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)
MOST_ERRORS: Final = 50
COUNTABLE_ERRORS: Final = 1000


class MalformedJson(BadRequest, status=400, title="The body is not acceptable JSON"): ...


class UnreadableTarget(BadRequest, status=400, title="The request's path or query cannot be read"): ...


class UpstreamProblem(BadGateway, status=502, title="A service that this one needs answered with a problem"): ...


class OutcomeUnknown(InternalError, status=500, title="It is not known whether this had its effect"): ...


def render(problem: Problem, *, instance: str, trace_id: str) -> bytes:
    """The document. ``instance`` is the request's path, decoded, ``trace_id`` 32 hex digits or ``""``.

    Raises:
        ValueError, TypeError: a member is no JSON.
    """
    document = problem.document()
    if problem.extensions:
        # orjson writes null for NaN; this one complains.
        json.dumps(problem.extensions, allow_nan=False, default=to_jsonable_python)
    document["instance"] = quote(instance, safe="/:@!$&'()*+,;=~-._", errors="replace")
    if trace_id:
        document["trace_id"] = trace_id
    return orjson.dumps(document, default=to_jsonable_python, option=orjson.OPT_NON_STR_KEYS)


class StarletteProblem(Problem, status=500):
    """What Starlette's own code answers with, such as a request whose JSON cannot be read."""

    def __init__(self, error: HTTPException) -> None:
        super().__init__(error.detail, headers=error.headers)
        self.status = error.status_code  # type: ignore[misc]  # of this one, where others' is of the class
        known = error.status_code in set(HTTPStatus)
        self.title = HTTPStatus(error.status_code).phrase if known else "Error"  # type: ignore[misc]
        self.type = "about:blank"  # type: ignore[misc]


def problem_for(error: BaseException) -> Problem | None:
    """The problem that an exception of ours stands for; ``None`` where it is a fault of the service's own."""
    match error:
        case Problem():
            return error
        case RemoteProblem() if error.status == DeadlineExceeded.status:
            # It was given the time that remained here, so that was not enough.
            return DeadlineExceeded(extensions={"service": error.service})
        case RemoteProblem():
            return UpstreamProblem(extensions={"service": error.service})
        case CommitUnknown():
            return OutcomeUnknown(
                "The database was lost while the work was being committed. "
                "Send it again with the same Idempotency-Key, or look for what it should have done"
            )
        case TimeoutError():
            return DeadlineExceeded()
    return _of_starlette(error)


def _of_starlette(error: BaseException) -> Problem | None:
    if isinstance(error, ClientDisconnect):
        return BadRequest("The client left before its request was whole")
    return StarletteProblem(error) if isinstance(error, HTTPException) else None


def pointer(location: Sequence[str | int]) -> str:
    """A JSON Pointer (RFC 6901) to ``location``; ``""`` is the whole."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in location)


def validation_errors(error: ValidationError, place: str, *, under: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What did not fit, as members of ``errors``. The values themselves are never repeated: one may be a password."""
    if error.error_count() > COUNTABLE_ERRORS:
        # Each costs microseconds to describe, and a megabyte holds half a million of them.
        return [{"in": place, "pointer": pointer(under), "detail": f"{error.error_count()} things do not fit"}]
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        {"in": place, "pointer": pointer([*under, *one["loc"]]), "detail": one["msg"]} for one in found[:MOST_ERRORS]
    ]


def validation_failed(errors: list[dict[str, Any]]) -> ValidationFailed:
    """422 with the pointers of what did not fit."""
    return ValidationFailed(errors[0]["detail"] if len(errors) == 1 else None, extensions={"errors": errors})
