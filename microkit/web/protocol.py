"""HTTP/1.1 on the wire: uvicorn's httptools protocol, with the limits enforced while the head is being read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NoReturn
from urllib.parse import unquote

import httptools
from uvicorn._types import HTTPScope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from microkit.errors import Problem
from microkit.request_head import RequestHead
from microkit.web.admission import READ_WITHIN_LIMITS, headers_too_large, url_too_long
from microkit.web.cycle import Cycle
from microkit.web.head import check_line, read_head, values
from microkit.web.limits import Limits
from microkit.web.lingering import LingeringTransport
from microkit.web.refusal import SlowHead, TooManyConnections, refusal, unreadable

_SILENT: Final = logging.Logger("microkit.web.ended", logging.CRITICAL + 1)

_CLOCKS: Final = 0.001
"""Seconds by which a timer may be early."""


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
        self._most_headers = limits.header_count
        self._draining = draining
        self._refused = refused
        self._in_head = self._in_body = False
        self._unfinished_bytes = 0
        """Bytes of a head that is not whole, or since the last of the body; -1 while the bytes under way are of it."""
        self._head: RequestHead | None = None
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
        except httptools.HttpParserError as error:
            # Not logged, as uvicorn does: a stranger must not be able to fill the log.
            self._refuse(self._trouble or self._unreadable(error, data))
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        last: RequestResponseCycle | None = self.cycle
        if self._way_out.is_closing():
            return
        if self._in_head or self._in_body:
            self._unfinished(len(data))
        if not self._in_head and last is not None and last.response_complete and not self._way_out.is_closing():
            self._came_after_the_answer()

    def _unfinished(self, size: int) -> None:
        """httptools keeps a header to itself until it is whole, and so it does with trailers and the extensions of
        chunks: their bytes are counted as they come."""
        before = self._unfinished_bytes
        self._unfinished_bytes = before + size if before >= 0 else 0
        if self._unfinished_bytes > self._limits.url + self._limits.headers:
            if self._in_body and self.cycle.response_complete:
                self._way_out.abort()  # it has its answer
            else:
                self._refuse(headers_too_large(self._limits))
        elif self._in_head and self._slow_head is None:
            self._expect_head()

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
        self._unfinished_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.url:
            self._stop(url_too_long(self._limits))

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        headers.append((name.lower(), value))
        if len(headers) > self._most_headers:  # their bytes are counted once they are all there
            self._stop(headers_too_large(self._limits))

    def on_headers_complete(self) -> None:
        """What uvicorn's does, without what is set otherwise here."""
        self._in_head, self._in_body = False, True
        if self._slow_head is not None:
            self._head_came()
        parser, scope = self.parser, self.scope
        method, version = parser.get_method(), parser.get_http_version()
        head = self._head
        try:
            if head is None or head.version != version or head.headers != self.headers:
                self._head = None
                self._head = head = read_head(self.headers, version, self._limits)
            headers = head.named
            check_line(method, self.url, headers)
        except Problem as problem:
            self._stop(problem)
        # A list of its own: trailers will be among ours (RFC 9110, 6.5.1), and an application may change it. The pairs
        # are the very same, so that it is compared at once.
        scope["headers"] = head.headers.copy()
        head.put(scope)  # type: ignore[arg-type]  # ASGI lets servers add keys
        scope["method"] = method.decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        self._tell_target(scope)
        if b"expect" in headers:
            self.expect_100_continue = any(
                value.lower() == b"100-continue" for value in values(self.headers, b"expect")
            )
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

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = -1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        last: RequestResponseCycle | None = self.cycle
        if last is not None and last.response_complete:
            self._head_came()  # whatever the rest of the body took, the next head has its own time
        super().on_message_complete()

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

    def _stop(self, problem: Problem) -> NoReturn:
        """Ends the parsing, from within one of its callbacks."""
        self._trouble = problem
        raise problem

    def _unreadable(self, error: httptools.HttpParserError, data: bytes) -> Problem:
        problem, self.url = unreadable(error, data, self.url)
        return problem

    def _refuse(self, problem: Problem) -> None:
        """Sends the problem and ends the connection."""
        self._refused(problem)
        # What was read of the request's head; a line that is no request may come after a request that was answered.
        headers = dict(self.headers) if self._in_head else self._head.named if self._in_body and self._head else {}
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
        self._way_out.write(refusal(problem, self.url, headers))
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
