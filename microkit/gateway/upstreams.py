"""Asking an instance of a service: which one, over which connection, and again where that can do no harm."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Container, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from opentelemetry.trace import Span, SpanKind, StatusCode

from microkit import context
from microkit.client.instance import Instance
from microkit.client.upstream import Outcome, Upstream, outcome_of
from microkit.errors import BadGateway, DeadlineExceeded, Problem
from microkit.gateway.body import ClientGone, RequestBody, stalled
from microkit.gateway.connection import BrokeOff, Connection, NoAnswer, NotConnected, Response, UpstreamError
from microkit.gateway.exchange import Answer, Exchange
from microkit.gateway.headers import returned_headers
from microkit.gateway.pool import Origin, Pool
from microkit.resilience.backoff import full_jitter, retry_after
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import inject, span_ids
from microkit.telemetry.recorder import RecordingSpan
from microkit.telemetry.span import describe_failure

EVENT_STREAM_IDLE: Final = 300.0
"""Seconds of silence that a stream of events may have, where its route says nothing of it."""

_LOCATIONS: Final = frozenset({b"location", b"content-location"})
_LONGEST_KNOWN: Final = 255
"""Characters of a host up to which it is remembered: what is remembered is bounded in bytes, too."""
_LONGEST_PAUSE: Final = 2.0
_DOCUMENT_LIMIT: Final = 8 * 1024 * 1024


class Upstreams:
    """Sends requests to instances, chosen and guarded as the typed client does it."""

    def __init__(self, pool: Pool, find: Callable[[str], Upstream], telemetry: Telemetry) -> None:
        self._pool = pool
        self._telemetry = telemetry
        self._durations = telemetry.metrics.http_client
        self._begin = telemetry.begin
        self._find = find
        self._services: dict[str, Upstream] = {}

    def service(self, name: str) -> Upstream:
        """The instances of a service, and what is known about them."""
        found = self._services.get(name)
        if found is None:
            found = self._services[name] = self._find(name)
        return found

    async def send(self, exchange: Exchange) -> Answer:
        """The service's answer, as it is.

        Raises:
            BadGateway: no instance can be reached, or it broke off or answered no HTTP.
            DeadlineExceeded: it did not answer in time.
            RequestTimeout: it was the client who did not send in time.
            Unavailable: no instance is known, or all of them failed too often lately.
            Problem: one that ended the reading of the client's body.
            ClientGone: the client hung up while sending its body.
        """
        upstream = self.service(exchange.service)
        upstream.begin()
        until = time.monotonic() + exchange.timeout
        if isinstance(exchange.body, RequestBody):
            content: bytes | AsyncIterator[bytes] = await exchange.body.begin(exchange.timeout)
        else:
            content = exchange.body or b""
        attempt = _Attempt(self, upstream, exchange, content)
        while True:
            answer = await attempt.make(until)
            if answer is not None:
                return answer

    async def get_json(self, service: str, path: str, within: float) -> tuple[int, bytes]:
        """Status and body of a small document that the service offers to everybody, ``within`` so many seconds."""
        chosen = await self.service(service).pick()
        outcome = Outcome.LEFT
        try:
            async with asyncio.timeout(within):
                origin = self._pool.origin(chosen.instance.url)
                connection = self._pool.kept(origin) or await self._pool.made(origin)
                response = connection.begin(
                    _head(origin, "GET", path, [(b"accept", b"application/json")]), wants_body=True
                )
                try:
                    body = b""
                    await connection.begun(response, within)
                    while len(body) < _DOCUMENT_LIMIT and (piece := await response.piece(within)):
                        body += piece
                finally:
                    response.close()
            outcome = Outcome.ANSWERED
        except (TimeoutError, UpstreamError) as error:
            raise broken(error, service) from None
        finally:
            chosen.done(outcome)
        return response.status, body

    def state(self) -> dict[str, Any]:
        """What is known of each service."""
        return {name: found.state() for name, found in self._services.items()}

    def span(self, exchange: Exchange, template: str) -> Span:
        return self._begin(
            f"{exchange.method} {template}",
            None,
            SpanKind.CLIENT,
            {"http.request.method": exchange.method, "server.address": exchange.service, "url.template": template},
        )

    def ended(self, exchange: Exchange, template: str, status: int, failure: str, seconds: float) -> None:
        self._durations(exchange.service, exchange.method, template, status or "", failure).observe(seconds)

    async def ask(
        self, exchange: Exchange, instance: Instance, content: bytes | AsyncIterator[bytes], span: Span, within: float
    ) -> Response:
        """What one instance begins to answer."""
        origin = self._pool.origin(instance.url)
        kept = self._pool.kept(origin)
        connection = kept or await self._pool.made(origin, within)
        target = exchange.target
        if exchange.query:
            target = f"{target}?{exchange.query.decode('latin-1')}"
        headers = [*exchange.headers, *own_headers(exchange, within), *trace_headers(span)]
        if isinstance(content, bytes):
            if content or exchange.body is not None:
                headers.append((b"content-length", b"%d" % len(content)))
            head = _head(origin, exchange.method, target, headers) + content
            response = connection.begin(head, wants_body=exchange.method != "HEAD")
        else:
            body = exchange.body
            assert isinstance(body, RequestBody)  # noqa: S101  pieces come of nothing else
            announced = (
                (b"transfer-encoding", b"chunked") if body.length is None else (b"content-length", b"%d" % body.length)
            )
            head = _head(origin, exchange.method, target, [*headers, announced])
            response = connection.begin(head, wants_body=exchange.method != "HEAD")
            connection.pump = asyncio.create_task(_upload(connection, content, chunked=body.length is None))
            # The service has nothing to answer while the client sends: its time starts with the last piece.
            body.on_progress = lambda: connection.extend(within)
        try:
            await connection.begun(response, within)
        except BaseException as error:
            response.close()
            if kept is not None and isinstance(error, NoAnswer):
                error.stale = True
            raise
        return response


class _Attempt:
    """The attempts at one request."""

    # What changes only where one fails.
    _renewed = False
    _avoid: Sequence[Instance] = ()
    _unreached: Sequence[Instance] = ()
    _unsent = False
    """Whether the last attempt reached nobody."""
    _made = 0

    def __init__(
        self, upstreams: Upstreams, upstream: Upstream, exchange: Exchange, content: bytes | AsyncIterator[bytes]
    ) -> None:
        self._upstreams = upstreams
        self._upstream = upstream
        self._exchange = exchange
        self._content = content

    @property
    def _again(self) -> bool:
        """Whether it may be sent again. What has a body is only where all of it is here: of a streamed one a part has
        gone."""
        exchange, content = self._exchange, self._content
        return exchange.repeatable and isinstance(content, bytes) and not (exchange.safe and content)

    async def make(self, until: float) -> Answer | None:
        """One more; ``None`` where another is to be made."""
        exchange, upstreams = self._exchange, self._upstreams
        template: str = exchange.scope["state"]["route"]
        left = until - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"The service {exchange.service} did not answer in time")
        chosen = await self._upstream.pick(self._avoid, unsent=self._unsent)
        self._made += 1
        outcome, failure, status = Outcome.LEFT, "", 0
        span = upstreams.span(exchange, template)
        began = time.perf_counter()
        try:
            response = await upstreams.ask(exchange, chosen.instance, self._content, span, left)
            self._unsent = False
            status = response.status
            outcome, wait = _said(response, exchange.retry_on)
            if status >= 400:
                span.set_status(StatusCode.ERROR)
                failure = str(status)
            span.set_attribute("http.response.status_code", status)
        except (UpstreamError, TimeoutError) as error:
            failure = type(error).__name__
            stale = isinstance(error, NoAnswer) and error.stale
            blamed = self._blamed(error)
            if blamed is None:
                outcome = Outcome.LEFT if stale else _failed(error)
            describe_failure(span, error)
            if blamed is None and await self._may_again(error, chosen.instance, stale, until):
                return None
            raise blamed or broken(error, exchange.service) from None
        except BaseException as error:
            failure = type(error).__name__
            describe_failure(span, error)
            raise
        finally:
            chosen.done(outcome)
            span.end()
            upstreams.ended(exchange, template, status, failure, time.perf_counter() - began)
        if status in exchange.retry_on:
            try:
                again = await self._retry(str(status), chosen.instance, wait, until)
            except BaseException:
                response.close()  # the client has hung up meanwhile
                raise
            if again:
                response.close()
                return None
        return answer_of(response, exchange, chosen.instance.url)

    def _blamed(self, error: Exception) -> Problem | ClientGone | None:
        """Where it was the client: what it did."""
        body = self._exchange.body
        if not isinstance(body, RequestBody):
            return None
        if body.problem is not None:
            return body.problem
        return stalled() if body.waits_for_client and isinstance(error, TimeoutError) else None

    async def _may_again(self, error: Exception, instance: Instance, stale: bool, until: float) -> bool:
        self._unsent = isinstance(error, NotConnected)
        if isinstance(error, NotConnected):
            # Nothing has been sent, so this goes for all methods. Each instance is tried once, and one that was reached
            # and said to come again is one to come to again where the others are away.
            if instance in self._unreached:
                return False
            self._avoid, self._unreached = [*self._avoid, instance], [*self._unreached, instance]
            others = any(one not in self._unreached for one in self._upstream.balancer.instances)
            return others and self._upstream.may_retry("connect", free=error.refused)
        if stale and self._again and not self._renewed:
            # The server had ended the kept connection just then (RFC 9110, 9.2.2). It costs it nothing.
            self._renewed = True
            return True
        return await self._retry(type(error).__name__, instance, None, until)

    async def _retry(self, reason: str, instance: Instance, wait: str | None, until: float) -> bool:
        exchange = self._exchange
        if not self._again or self._made >= exchange.attempts:
            return False
        pause = full_jitter(self._made, exchange.backoff, _LONGEST_PAUSE)
        asked = retry_after(wait)
        if asked is not None:
            pause = max(pause, asked)
        if time.monotonic() + pause >= until or not self._upstream.may_retry(reason):
            return False
        self._avoid = [*self._avoid, instance]
        await asyncio.sleep(pause)
        return True


def _failed(error: Exception) -> Outcome:
    return Outcome.AWAY if isinstance(error, NotConnected) and error.refused else Outcome.FAILED


def answer_of(response: Response, exchange: Exchange, origin: str) -> Answer:
    """What goes on of an answer of the instance at ``origin``: whole where it is here, else in pieces."""
    headers = returned_headers(response.headers, response.named)
    if not _LOCATIONS.isdisjoint(response.named):
        for place, (name, value) in enumerate(headers):
            if name in _LOCATIONS:
                headers[place] = name, _relative(value, origin)
    if response.complete:
        answer = Answer(response.status, headers, b"".join(response.pieces))
        if exchange.method == "HEAD":
            answer.length = response.length
        response.close()
        return answer
    idle = exchange.idle_timeout
    if not idle:
        stream = response.named.get(b"content-type", b"").startswith(b"text/event-stream")
        idle = EVENT_STREAM_IDLE if stream else exchange.timeout
    pieces = _pieces(response, idle, exchange.service)
    return Answer(response.status, headers, pieces=pieces, length=response.length, close=response.close)


def _relative(location: bytes, origin: str) -> bytes:
    """A ``Location`` without the instance's own address, which is nobody's business."""
    own = origin.encode("latin-1")
    return location[len(own) :] if location.startswith(own + b"/") else location


async def _pieces(response: Response, within: float, service: str) -> AsyncIterator[bytes]:
    try:
        while piece := await response.piece(within):
            yield piece
    except (UpstreamError, TimeoutError) as error:
        raise broken(error, service) from None
    finally:
        response.close()


async def _upload(connection: Connection, pieces: AsyncIterator[bytes], *, chunked: bool) -> None:
    try:
        async for piece in pieces:
            if chunked and piece:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)  # noqa: PLW2901  the same, framed
            if piece:
                await connection.write(piece)
        if chunked:
            await connection.write(b"0\r\n\r\n")
    except (Problem, ClientGone) as error:
        connection.fail(error)


def _head(origin: Origin, method: str, target: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    line = f"{method} {origin.base}{target} HTTP/1.1\r\nhost: ".encode("latin-1")
    return line + b"\r\n".join([origin.authority, *map(b": ".join, headers), b"\r\n"])


def own_headers(exchange: Exchange, within: float) -> list[tuple[bytes, bytes]]:
    """What the gateway tells the service: of whom the request is, and ``within`` how many seconds it is to be answered.
    No client can have sent any of these."""
    client = exchange.client
    of_client = _of_client if len(client.host) <= _LONGEST_KNOWN else _of_client.__wrapped__
    headers = [
        *of_client(client.address, client.scheme, client.host),
        (b"request-timeout-ms", b"%d" % (int(within * 1000) or 1)),
    ]
    if request_id := context.current().request_id:
        headers.append((b"x-request-id", request_id.encode()))
    if subject := exchange.principal.subject:
        headers.append((b"x-user-id", _in_a_line(subject)))
    return headers


@lru_cache(maxsize=1024)
def _of_client(address: str, scheme: str, host: str) -> tuple[tuple[bytes, bytes], ...]:
    told = (("proto", scheme), ("for", address), ("host", host))
    return tuple((b"x-forwarded-" + name.encode(), value.encode()) for name, value in told if value)


def _in_a_line(subject: str) -> bytes:
    """A subject as a header can hold it: an issuer may let its users choose it."""
    return (subject if subject.isascii() and subject.isprintable() else quote(subject, safe="")).encode()


def trace_headers(span: Span) -> list[tuple[bytes, bytes]]:
    """What carries the trace on."""
    if type(span) is RecordingSpan:
        trace, own = span_ids(span)
        found = [(b"traceparent", f"00-{trace}-{own}-01".encode())]
        if span.state:
            found.append((b"tracestate", span.state.to_header().encode()))
        return found
    return [(name.encode(), value.encode()) for name, value in inject().items()]


def _said(response: Response, retry_on: Container[int]) -> tuple[Outcome, str | None]:
    """What an answer says of the instance, and when to ask it again."""
    status = response.status
    if status < 400 and status not in retry_on:
        return Outcome.ANSWERED, None
    wait = response.named.get(b"retry-after")
    said = None if wait is None else wait.decode("latin-1")
    return outcome_of(status, said), said


def broken(error: Exception, service: str) -> Problem:
    """What to tell the client about an exchange that failed."""
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"The service {service} did not answer in time")
    if isinstance(error, NotConnected):
        return BadGateway(f"The service {service} cannot be reached")
    if isinstance(error, BrokeOff):
        return BadGateway(f"The service {service} broke off in the middle of its answer")
    if isinstance(error, NoAnswer):
        return BadGateway(f"The service {service} closed the connection without an answer")
    return BadGateway(f"The service {service} gave an answer that is no HTTP")
