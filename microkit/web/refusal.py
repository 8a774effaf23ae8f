"""What a connection is told that sends no request which could be answered by an application."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPMethod
from random import getrandbits
from typing import Final
from urllib.parse import unquote

import httptools
from opentelemetry.trace import get_current_span
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from microkit.errors import MethodNotAllowed, Problem, RequestTimeout, Unavailable
from microkit.telemetry.propagation import extract, span_ids
from microkit.web.head import METHODS, NotHttp
from microkit.web.problems import PROBLEM_HEADERS, render
from microkit.web.sent import request_id

_KNOWN: Final = frozenset(HTTPMethod)
# The first line of a request, as far as it came, at the beginning of what came or after the request before.
_REQUEST_LINE: Final = re.compile(
    rb"(?:\A(?:\r\n)*|\r\n\r\n)([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([!-~]+)(?: (?:H(?:T(?:T(?:P/?)?)?)?\Z|HTTP/\d)|\Z)"
)


class SlowHead(RequestTimeout, status=408, title="The request's head did not come in time"): ...


class TooManyConnections(Unavailable, status=503, title="There are too many connections"): ...


def unreadable(error: httptools.HttpParserError, data: bytes, url: bytes) -> tuple[Problem, bytes]:
    """405 where the parser stopped at a method that is none of HTTP's, 400 where it is no HTTP at all; and the target
    that was asked for, which is ``url`` where the parser got as far as that."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        for method, target in _REQUEST_LINE.findall(data):
            if method.decode() not in _KNOWN:
                return MethodNotAllowed(f"There is no method {method.decode()}", headers=METHODS), target
    return NotHttp(), url


def refusal(problem: Problem, url: bytes, headers: Mapping[bytes, bytes]) -> bytes:
    """The answer, on the wire, that ends the connection. ``url`` and ``headers`` are what was read of the request."""
    instance = unquote(url.partition(b"?")[0][:200].decode("latin-1"))
    body = render(problem, instance=instance, trace_id=_trace_id(headers))
    head = [
        STATUS_LINE[problem.status],
        *(b"%b: %b\r\n" % pair for pair in PROBLEM_HEADERS),
        f"x-request-id: {request_id(headers)}\r\n".encode(),
        *(f"{name}: {value}\r\n".encode("latin-1") for name, value in problem.headers.items()),
        b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
    ]
    return b"".join(head) + body


def _trace_id(headers: Mapping[bytes, bytes]) -> str:
    """The trace that the caller began, where it said so before it was refused, else a new one."""
    parent = get_current_span(extract(headers.get(b"traceparent", b"").decode("latin-1")))
    return span_ids(parent)[0] or f"{getrandbits(128) or 1:032x}"
