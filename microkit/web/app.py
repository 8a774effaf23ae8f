"""The ASGI application of one service: everything around a handler, in one layer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from random import getrandbits
from typing import Any, Final

from opentelemetry.context import attach, detach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from microkit import context
from microkit.context import WorkContext
from microkit.db import Database
from microkit.errors import InternalError, MethodNotAllowed, NotFound, Problem
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import access_line, serving
from microkit.telemetry.propagation import extract
from microkit.telemetry.span import describe_failure
from microkit.web.access import Access, Verify, bearer
from microkit.web.admission import Admission
from microkit.web.binding import OFFERED
from microkit.web.builtin import builtin_routes
from microkit.web.call import Call, HeaderList, Reply
from microkit.web.deadline import Alarm, allowed
from microkit.web.endpoint import Answer, Endpoint, Served
from microkit.web.health import Health
from microkit.web.idempotency import Idempotency
from microkit.web.limits import Limits
from microkit.web.mounting import mounted
from microkit.web.problems import MEDIA_TYPE, problem_for, render
from microkit.web.route import Route, Surface
from microkit.web.routing import Methods, RouteTable

PRUNE_EVERY: Final = 600.0
_NO_RESOURCES: Final[Mapping[Any, object]] = {}
_NOTHING: Final[dict[str, Any]] = {}
_NO_LENGTH: Final = frozenset({204, 304})
CLIENT_GONE: Final = 499
"""What is logged where nothing was sent: nginx' code for a client that left, here also a server that was stopped."""

_REFUSED_METHODS: Final = frozenset({"TRACE", "CONNECT"})
_ID_CHARACTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


class WebApp:
    """Serves a :class:`Surface`.

    Each request gets, in one layer: the limits, the host check, a span under the caller's, a duration in the metrics, a
    line in the access log, a deadline, the caller's identity, and a problem document for whatever goes wrong.
    ``verify`` turns an access token into a caller. ``resources`` are bound to handlers' parameters by their type.

    Raises:
        DefinitionError: a handler asks for something that is not there, or two routes collide.
    """

    def __init__(
        self,
        surface: Surface,
        *,
        telemetry: Telemetry,
        health: Health | None = None,
        verify: Verify | None = None,
        database: Database | None = None,
        resources: Mapping[Any, object] = _NO_RESOURCES,
        limits: Limits | None = None,
        access_log: bool = True,
    ) -> None:
        self.surface = surface
        self.limits = limits or Limits()
        self.health = health or Health()
        self.telemetry = telemetry
        self._service = surface.service
        self._tracer = telemetry.tracer
        self._access = Access(verify)
        self._access_log = access_log
        self._admission = Admission(self.limits)
        self._idempotency = Idempotency(database) if database is not None else None
        self._pruning: asyncio.Task[None] | None = None
        self._active = 0
        telemetry.metrics.active.set_function(lambda: self._active)
        self._table: RouteTable[Served] = RouteTable()
        self._unrouted = Served("", _nothing_here)
        self.routes = self._add_routes(resources, database)
        self._mounts = mounted(surface.mounts, self._access)

    def _add_routes(self, resources: Mapping[Any, object], database: Database | None) -> tuple[Route, ...]:
        routes = [Route.of_operation(operation, handler) for operation, handler in self.surface.operations]
        routes += [Route.of_inline(inline, {*OFFERED, *resources}) for inline in self.surface.routes]
        answers: dict[tuple[str, str], Answer] = {}
        for route in routes:
            endpoint = Endpoint(
                route,
                access=self._access,
                resources=resources,
                database=database,
                idempotency=self._idempotency,
                depth=self.limits.depth,
            )
            answers[route.method, route.path] = endpoint.answer
            self._table.add(route.method, route.path, Served(route.path, endpoint.answer, route.timeout))
        own = answers.get(("GET", "/openapi.json"))
        for path, answer in builtin_routes(self.surface, routes, self.health, self.telemetry, own).items():
            if (
                "GET",
                path,
            ) not in answers:  # a service may write its own, as a gateway does with the documents of many
                self._table.add("GET", path, Served(path, answer, quiet=True))
        return tuple(routes)

    async def start(self) -> None:
        """Begins to delete replies that are past their retention. Without it the application serves all the same."""
        if self._idempotency is not None and self._pruning is None:
            self._pruning = asyncio.create_task(self._prune(self._idempotency), name=f"{self._service} prune")

    async def stop(self) -> None:
        """Ends what :meth:`start` began."""
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.gather(self._pruning, return_exceptions=True)
            self._pruning = None

    async def _prune(self, idempotency: Idempotency) -> None:
        while True:
            await asyncio.sleep(PRUNE_EVERY * (0.5 + getrandbits(16) / 65536))
            try:
                await idempotency.prune()
            except Exception:
                self.telemetry.logger.exception("idempotency keys could not be pruned")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        began = time.perf_counter()
        headers = dict(scope["headers"])
        trouble: Problem | None = None
        served, in_path = self._unrouted, _NOTHING
        try:
            self._admission.check(scope, headers)
            served, in_path = self._find(scope["method"], scope["path"])
        except Problem as problem:
            trouble = problem
        call = Call(scope, receive, headers, in_path, self.limits.body)
        call.token = bearer(headers.get(b"authorization"))
        limit = self._limit(served, headers)
        deadline = None if limit is None else time.monotonic() + limit
        work = WorkContext(_request_id(headers), deadline, None, call.token)
        span = self._span(call, served)
        in_service, at_work = serving.set(self._service), context.enter(work)
        in_span = attach(set_span_in_context(span))
        self._active += 1
        sent = Sent(send, scope["method"], work.request_id)
        try:
            await self._exchange(call, served, trouble, sent)
        finally:
            self._active -= 1
            detach(in_span)
            context.leave(at_work)
            serving.reset(in_service)
            self._account(call, served, span, sent, time.perf_counter() - began)

    async def _exchange(self, call: Call, served: Served, trouble: Problem | None, sent: Sent) -> None:
        """Answers, and turns whatever goes wrong into a problem document, while that can still be sent."""
        answer: Reply | ASGIApp
        try:
            if trouble is not None:
                answer = self._problem_reply(trouble, call)
            elif served.timeout == 0.0:
                answer = await served.answer(call)
            else:
                answer = await self._within(served, call)
            if isinstance(answer, Reply):
                await sent.whole(answer)
            else:
                await answer(call.scope, call.receive, sent.message)
        except Exception as error:
            if sent.started:
                # Half an answer is out. Only the end of the connection tells the client that it is not whole.
                self._report(error, call)
                raise
            await sent.whole(self._problem_reply(error, call))

    async def _within(self, served: Served, call: Call) -> Reply | ASGIApp:
        left = context.remaining()
        alarm = Alarm(asyncio.get_running_loop(), left or 0.0)
        try:
            return await served.answer(call)
        except asyncio.CancelledError as error:
            raise alarm.explain(error) from None
        finally:
            alarm.off()

    def _limit(self, served: Served, headers: Mapping[bytes, bytes]) -> float | None:
        """Seconds that the request may take; ``None`` for a mounted application whose caller sets no limit."""
        header = headers.get(b"request-timeout-ms")
        if served.timeout == 0.0:
            return allowed(self.limits.timeout, header) if header is not None else None
        return allowed(served.timeout or self.limits.timeout, header)

    def _find(self, method: str, path: str) -> tuple[Served, dict[str, Any]]:
        methods, in_path = self._table.find(path)
        if methods is not None:
            served = methods.by_method.get(method)
            if served is not None:
                return served, in_path
            if method == "OPTIONS":
                return _options(methods), _NOTHING
            raise MethodNotAllowed(f"This path takes {methods.allowed}", headers={"allow": methods.allowed})
        if method in _REFUSED_METHODS:
            raise MethodNotAllowed(headers={"allow": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"})
        for mount in self._mounts:
            if mount.covers(path):
                return mount.served, _NOTHING
        raise NotFound("There is nothing at this path")

    def _span(self, call: Call, served: Served) -> Span:
        if served.quiet:
            return INVALID_SPAN
        scope, headers = call.scope, call.headers
        client = scope.get("client")
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"],
            "http.route": served.template,
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "client.address": client[0] if client else "",
            "user_agent.original": headers.get(b"user-agent", b"").decode("latin-1"),
        }
        traceparent, tracestate = headers.get(b"traceparent"), headers.get(b"tracestate")
        parent = extract(
            None if traceparent is None else traceparent.decode("latin-1"),
            None if tracestate is None else tracestate.decode("latin-1"),
        )
        name = f"{scope['method']} {served.template}" if served.template else scope["method"]
        return self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)

    def _problem_reply(self, error: Exception, call: Call) -> Reply:
        problem = problem_for(error)
        if problem is None or problem.status >= 500:
            self._report(error, call)
        problem = problem or InternalError()
        context = get_current_span().get_span_context()
        trace_id = f"{context.trace_id:032x}" if context.trace_id else ""
        headers: HeaderList = [(b"content-type", MEDIA_TYPE), (b"cache-control", b"no-store")]
        headers += [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in problem.headers.items()]
        return Reply(problem.status, headers, render(problem, instance=call.scope["path"], trace_id=trace_id))

    def _report(self, error: Exception, call: Call) -> None:
        """Tells the log and the trace, which may know what the caller may not."""
        span = get_current_span()
        if span.is_recording():
            describe_failure(span, error)
        where = f"{call.scope['method']} {call.scope['path']}"
        if isinstance(error, Problem):
            self.telemetry.logger.warning("%s: %s", where, error, extra={"problem": error.type})
        else:
            self.telemetry.logger.error("%s failed", where, exc_info=error)

    def _account(self, call: Call, served: Served, span: Span, sent: Sent, seconds: float) -> None:
        """Writes the request into the span, the metrics and the access log."""
        scope, status = call.scope, sent.status
        self.telemetry.metrics.http_server(scope["method"], served.template, status).observe(seconds)
        if span.is_recording():
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()
        if self._access_log and not served.quiet:
            client = scope.get("client")
            access_line(
                self._service,
                scope["method"],
                scope["path"],
                served.template,
                status,
                seconds,
                span,
                {
                    "request_id": sent.request_id,
                    "client": client[0] if client else "",
                    "user": call.principal.subject,
                    "bytes": sent.size,
                },
            )

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            # Another server may run the application; what it needs is started by the service.
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only mounted applications speak WebSocket; the others refuse the handshake."""
        headers = dict(scope["headers"])
        try:
            self._admission.check(scope, headers)
            mount = next((one for one in self._mounts if one.covers(scope["path"])), None)
            if mount is None:
                raise NotFound
            await mount.websocket(scope, bearer(headers.get(b"authorization")), receive, send)
        except Problem:
            await send({"type": "websocket.close", "code": 1008})


class Sent:
    """The way out: sends an answer, and knows what of it has been sent."""

    __slots__ = ("_method", "_send", "request_id", "size", "status")

    def __init__(self, send: Send, method: str, request_id: str) -> None:
        self._send = send
        self._method = method
        self.request_id = request_id
        self.status = CLIENT_GONE
        self.size = 0

    @property
    def started(self) -> bool:
        return self.status != CLIENT_GONE

    async def whole(self, reply: Reply) -> None:
        """Sends a reply that is in one piece."""
        body = reply.body
        headers = [*reply.headers, (b"x-request-id", self.request_id.encode())]
        if reply.status not in _NO_LENGTH:
            headers.append((b"content-length", b"%d" % len(body)))
        self.status, self.size = reply.status, len(body)
        await self._send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": b"" if self._method == "HEAD" else body})

    async def message(self, message: Message) -> None:
        """Passes on what an application sends in pieces."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)


def _options(methods: Methods[Served]) -> Served:
    async def answer(_: Call) -> Reply:
        return Reply(204, [(b"allow", methods.allowed.encode())])

    return Served(methods.template, answer)


async def _nothing_here(_: Call) -> Reply:
    raise NotFound


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The caller's ``X-Request-ID`` where it is harmless in a log line, else a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and not given.translate(None, _ID_CHARACTERS):
        return given.decode()
    return f"{getrandbits(96):024x}"
