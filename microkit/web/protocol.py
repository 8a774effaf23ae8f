"""HTTP/1.1 on the wire: uvicorn's httptools protocol, with the limits enforced while the head is being read."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from http import HTTPMethod
from random import getrandbits
from typing import Any, Final
from urllib.parse import unquote

import httptools
from opentelemetry.trace import get_current_span
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from microkit.errors import BadRequest, MethodNotAllowed, Problem, RequestTimeout, Unavailable
from microkit.telemetry.propagation import extract, span_ids
from microkit.web.admission import NO_HOST, READ_WITHIN_LIMITS, headers_too_large, is_host, url_too_long
from microkit.web.cycle import Cycle
from microkit.web.limits import Limits
from microkit.web.problems import PROBLEM_HEADERS, render
from microkit.web.sent import request_id

_SILENT: Final = logging.Logger("microkit.web.ended", logging.CRITICAL + 1)

LINGER: Final = 1.0
"""Seconds that a client gets to stop sending after an answer that ends its connection."""

_CLOCKS: Final = 0.001
"""Seconds by which a timer may be early."""
_MOST_DISCARDED: Final = 16 * 1024 * 1024
_KNOWN: Final = frozenset(HTTPMethod)
_METHODS: Final = {"allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"}
# The first line of a request, as far as it came, at the beginning of what came or after the request before.
_REQUEST_LINE: Final = re.compile(
    rb"(?:\A(?:\r\n)*|\r\n\r\n)([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([!-~]+)(?: (?:H(?:T(?:T(?:P/?)?)?)?\Z|HTTP/\d)|\Z)"
)


class NotHttp(BadRequest, status=400, title="The request is not well-formed HTTP/1.1"): ...


class SlowHead(RequestTimeout, status=408, title="The request's head did not come in time"): ...


class TooManyConnections(Unavailable, status=503, title="There are too many connections"): ...


class VersionNotSupported(Problem, status=505, title="HTTP/1.1 is spoken here"): ...


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Beyond uvicorn's: 414 and 431 as soon as a limit is passed, 408 for a head that comes too slowly, problem documents
    for what cannot be parsed, no trailers among the headers, and an end of the connection that lets the client read
    the answer.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        draining: Callable[[], bool],
        refused: Callable[[Problem], None],
        config: Config,
        server_state: ServerState,
        _loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(config, server_state, {}, _loop)
        self._limits = limits
        self._most_header_bytes, self._most_headers = limits.headers, limits.header_count
        self._draining = draining
        self._refused = refused
        self._in_head = self._in_body = False
        self._unfinished_bytes = 0
        self._header_bytes = 0
        self._known_host: bytes | None = None
        self._idle_since: float | None = None
        self._trouble: Problem | None = None
        self._way_out: LingeringTransport
        self._slow_head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        self._way_out = LingeringTransport(transport, self.loop)
        super().connection_made(self._way_out)  # type: ignore[arg-type]  # it has all that uvicorn uses
        if len(self.server_state.connections) > self._limits.connections:
            self.url, self.headers = b"", []
            self._refuse(TooManyConnections(headers={"retry-after": "1"}))
            return
        self._expect_head()

    def give_up(self) -> None:
        """What is under way is about to be cancelled. Whoever does that says so, once: it is no fault of the
        application, which uvicorn would log with a stack."""
        if self.cycle is not None:
            self.cycle.logger = _SILENT

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self._way_out.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._way_out.discards(len(data)):
            return
        self._idle_since = None
        try:
            self.parser.feed_data(data)
        except (
            httptools.HttpParserError
        ) as error:  # not logged, as uvicorn does: a stranger must not be able to fill the log
            self._refuse(self._trouble or self._unreadable(error, data))
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        last: RequestResponseCycle | None = self.cycle
        if self._way_out.is_closing():
            return
        if self._in_head:
            # httptools keeps a header to itself until it is whole, so its bytes are counted as they come.
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > self._limits.url + self._limits.headers:
                self._refuse(headers_too_large(self._limits))
            elif self._slow_head is None:
                self._expect_head()
        elif last is not None and last.response_complete:
            self._came_after_the_answer()

    def _came_after_the_answer(self) -> None:
        """Bytes that begin no request, for which uvicorn has stopped its timer: a connection must not live on them."""
        if self._in_body:
            if self._slow_head is None:  # not later, however many pieces the rest of the body comes in
                self._expect_head()
        else:
            self._await_request()

    # What the parser calls.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[READ_WITHIN_LIMITS] = None  # type: ignore[typeddict-unknown-key]  # ASGI lets servers add keys
        self._in_head = True
        self._unfinished_bytes = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.url:
            self._stop(url_too_long(self._limits))

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self._most_header_bytes or len(headers) >= self._most_headers:
            self._stop(headers_too_large(self._limits))
        if self._in_head:  # else it is a trailer, which must not pass for a header (RFC 9110, 6.5.1)
            headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """What uvicorn's does, without what is set otherwise here."""
        self._in_head, self._in_body = False, True
        if self._slow_head is not None:
            self._head_came()
        parser, scope = self.parser, self.scope
        method, version = parser.get_method(), parser.get_http_version()
        headers = dict(self.headers)
        self._check_head(method, version, headers)
        scope["method"] = method.decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        self._tell_target(scope)
        if b"expect" in headers:
            self.expect_100_continue = any(value.lower() == b"100-continue" for value in self._all(b"expect"))
        before: RequestResponseCycle | None = self.cycle
        self.cycle = cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive() and not self._draining(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            scope[READ_WITHIN_LIMITS] = time.monotonic()  # type: ignore[typeddict-unknown-key]  # as above
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _tell_target(self, scope: HTTPScope) -> None:
        if self.url.startswith(b"/"):
            raw_path, _, query = self.url.partition(b"?")
        else:
            parsed = httptools.parse_url(self.url)
            raw_path, query = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = query

    def on_message_complete(self) -> None:
        self._in_body = False
        last: RequestResponseCycle | None = self.cycle
        if last is not None and last.response_complete:
            self._head_came()  # whatever the rest of the body took, the next head has its own time
        super().on_message_complete()

    def _check_head(self, method: bytes, version: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuses what is valid to the parser and ambiguous to others on the way."""
        if version == "0.9":
            self._stop(NotHttp("The request line ends without HTTP/1.1"))
        if version not in {"1.0", "1.1"}:
            self._stop(VersionNotSupported())
        host = headers.get(b"host")
        # Where each name is there once, nearly always, the headers by name say it all.
        if (host is None and version == "1.1") or (len(headers) != len(self.headers) and len(self._all(b"host")) > 1):
            self._stop(NotHttp("One Host header is needed"))
        if host is not None and host != self._known_host:
            if not is_host(host):
                self._stop(NotHttp(NO_HOST))
            self._known_host = host
        if b"transfer-encoding" in headers:
            codings = self._all(b"transfer-encoding")
            if version == "1.0" or [coding.lower() for coding in codings] != [b"chunked"]:
                self._stop(NotHttp("The only transfer coding taken is chunked, in HTTP/1.1"))
        if method == b"CONNECT":
            self._stop(MethodNotAllowed(headers=_METHODS))
        if b"#" in self.url or not (self.url.startswith(b"/") or (self.url == b"*" and method == b"OPTIONS")):
            self._check_absolute(host or b"")

    def _all(self, wanted: bytes) -> list[bytes]:
        return [value for name, value in self.headers if name == wanted]

    def _check_absolute(self, host: bytes) -> None:
        """``GET http://host/path`` (RFC 9112, 3.2.2) is taken where it names the host that Host names."""
        scheme, _, rest = self.url.partition(b"://")
        if scheme.lower() not in {b"http", b"https"} or b"#" in rest or rest.split(b"/", 1)[0].lower() != host.lower():
            self._stop(NotHttp("The request target is neither a path nor a URL of the host that Host names"))

    # Between two requests. One timer for many: setting and taking back one for each request costs more than parsing it.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._await_request()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _await_request(self) -> None:
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return  # a request is under way, and its end sets the next timer
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > _CLOCKS:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    # Refusing.

    def _stop(self, problem: Problem) -> None:
        """Ends the parsing, from within one of its callbacks."""
        self._trouble = problem
        raise problem

    def _unreadable(self, error: httptools.HttpParserError, data: bytes) -> Problem:
        """405 where the parser stopped at a method that is none of HTTP's, 400 where it is no HTTP at all."""
        if isinstance(error, httptools.HttpParserInvalidMethodError):
            for method, target in _REQUEST_LINE.findall(data):
                if method.decode() not in _KNOWN:
                    self.url = target
                    return MethodNotAllowed(f"There is no method {method.decode()}", headers=_METHODS)
        return NotHttp()

    def _refuse(self, problem: Problem) -> None:
        """Sends the problem and ends the connection."""
        self._refused(problem)
        # What was read of the request's head; a line that is no request may come after a request that was answered.
        headers = dict(self.headers) if self._in_head or self._in_body else {}
        self._head_came()
        self._in_head = False
        before: RequestResponseCycle | None = self.cycle
        if before is not None and not before.response_complete:
            self._way_out.deafen()
            if not before.more_body:
                # The answer to the request before is under way, and comes first. The client sees the end after it.
                before.keep_alive = False
                self.pipeline.clear()
                return
            # It is that request whose body is broken: nobody is to wait for the rest.
            before.disconnected = True
            before.message_event.set()
            if before.response_started:
                self._way_out.abort()
                return
        instance = unquote(self.url.partition(b"?")[0][:200].decode("latin-1")) if self.url else ""
        body = render(problem, instance=instance, trace_id=_trace_id(headers))
        head = [
            STATUS_LINE[problem.status],
            *(b"%b: %b\r\n" % pair for pair in PROBLEM_HEADERS),
            f"x-request-id: {request_id(headers)}\r\n".encode(),
            *(f"{name}: {value}\r\n".encode("latin-1") for name, value in problem.headers.items()),
            b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
        ]
        self._way_out.write(b"".join(head) + body)
        self._way_out.deafen()
        self._way_out.close()

    # A head that comes slowly.

    def _expect_head(self) -> None:
        self._slow_head = self.loop.call_later(self._limits.header_timeout, self._head_is_late)

    def _head_came(self) -> None:
        if self._slow_head is not None:
            self._slow_head.cancel()
            self._slow_head = None

    def _head_is_late(self) -> None:
        self._slow_head = None
        if self._in_head:
            self._refuse(SlowHead())
        else:
            self._way_out.close()  # a connection on which nothing came needs no answer


def _trace_id(headers: Mapping[bytes, bytes]) -> str:
    """The trace that the caller began, where it said so before it was refused, else a new one."""
    parent = get_current_span(extract(headers.get(b"traceparent", b"").decode("latin-1")))
    return span_ids(parent)[0] or f"{getrandbits(128) or 1:032x}"


class LingeringTransport:
    """A transport that closes in an order in which the client can read the answer.

    Closing a socket with unread bytes makes TCP send a reset, which takes the answer away from a client that is still
    sending its body. So the sending side is closed first, and what still comes is read and thrown away, for
    :data:`LINGER` seconds at most (nginx calls it lingering close).
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._deaf = False
        self._discarded = 0
        self._end: asyncio.TimerHandle | None = None
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def deafen(self) -> None:
        """What comes from now on is thrown away."""
        self._deaf = True

    def discards(self, size: int) -> bool:
        """Whether bytes that came are to be thrown away."""
        if not self._deaf:
            return False
        self._discarded += size
        if self._discarded > _MOST_DISCARDED:
            self._transport.abort()
        return True

    def is_closing(self) -> bool:
        return self._end is not None or self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection, after what has been written."""
        if self.is_closing():
            return
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._deaf = True
        self._end = self._loop.call_later(LINGER, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        """Another protocol takes over."""
        self._transport.set_protocol(_UntilTheEnd(protocol, self))

    def lost(self) -> None:
        """The connection is gone. What is still written is dropped: uvicorn tells only the last request of a pipeline,
        and where asyncio's transports take what the others write, uvloop's raise."""
        self.write = _drop
        if self._end is not None:
            self._end.cancel()


class _UntilTheEnd(asyncio.Protocol):
    """The protocol of a WebSocket, which uvicorn puts in the place of HTTP's: it hears nothing after it has closed.
    It would answer what a client goes on to send, on a transport that cannot be written to any more."""

    def __init__(self, protocol: asyncio.Protocol, way_out: LingeringTransport) -> None:
        self._protocol = protocol
        self._way_out = way_out
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]  # the very same
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def data_received(self, data: bytes) -> None:
        if not self._way_out.discards(len(data)):
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._way_out.lost()
        self._protocol.connection_lost(exc)


def _drop(data: object) -> None:
    """Nobody is left to read it."""
