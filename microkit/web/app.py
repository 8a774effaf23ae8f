"""The ASGI application of one service: everything around a handler, in one layer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from random import getrandbits
from typing import Any, Final

from opentelemetry.context import attach, detach
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Receive, Scope, Send

from microkit import context
from microkit.context import WorkContext
from microkit.db import Database
from microkit.errors import DeadlineExceeded, InternalError, MethodNotAllowed, NotFound, Problem
from microkit.request_head import head_of
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import serving
from microkit.telemetry.propagation import context_of
from microkit.web.access import Access, Verify
from microkit.web.admission import READ_WITHIN_LIMITS, Admission
from microkit.web.binding import OFFERED
from microkit.web.builtin import builtin_routes
from microkit.web.call import Call, HeaderList, Reply
from microkit.web.deadline import Watch, allowed
from microkit.web.endpoint import Answer, Endpoint, Served
from microkit.web.health import Health
from microkit.web.idempotency import Idempotency
from microkit.web.limits import Limits
from microkit.web.mounting import mounted
from microkit.web.observer import Observer
from microkit.web.problems import PROBLEM_HEADERS, problem_for, render
from microkit.web.rate_limits import RateLimits
from microkit.web.route import Route, Surface
from microkit.web.routing import Methods, RouteTable
from microkit.web.sent import FRAMING, Sent, UnsendableAnswer, check_sendable, request_id
from microkit.web.shedding import Entrance

PRUNE_EVERY: Final = 600.0
_MOST_PIECES: Final = 1000
_NO_RESOURCES: Final[Mapping[Any, object]] = {}
_NOTHING: Final[dict[str, Any]] = {}
_REFUSED_METHODS: Final = frozenset({"TRACE", "CONNECT"})


class WebApp:
    """Serves a :class:`Surface`.

    Each request gets, in one layer: the limits, the host check, a span under the caller's, a duration in the metrics, a
    line in the access log, a deadline, the caller's identity, and a problem document for whatever goes wrong.
    ``verify`` turns an access token into a caller. ``resources`` are bound to handlers' parameters by their type; a
    :class:`~microkit.resilience.rate.RateLimiter` among them counts for the limits, else one in memory.

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
        self._access = Access(verify)
        self._observer = Observer(telemetry, access_log=access_log)
        self._admission = Admission(self.limits)
        self._idempotency = Idempotency(database) if database is not None else None
        self._pruning: asyncio.Task[None] | None = None
        self._entrance = Entrance(self.limits, telemetry, self._access, database)
        self._rates = RateLimits(surface.limits, resources, telemetry)
        self._active = 0
        self._watch = Watch()
        telemetry.metrics.active.set_function(lambda: self._active)
        self._table: RouteTable[Served] = RouteTable()
        self._unrouted = Served("", _nothing_here)
        self.routes = self._add_routes(resources, database)
        self._mounts = mounted(surface.mounts, self._access)

    def _add_routes(self, resources: Mapping[Any, object], database: Database | None) -> tuple[Route, ...]:
        routes = [Route.of_operation(operation, handler) for operation, handler in self.surface.operations]
        routes += [Route.of_inline(inline, {*OFFERED, *resources}) for inline in self.surface.routes]
        self._rates.check({route.limited_as for route in routes})
        answers: dict[tuple[str, str], Answer] = {}
        for route in routes:
            endpoint = Endpoint(
                route,
                access=self._access,
                resources=resources,
                database=database,
                idempotency=self._idempotency,
                rates=self._rates,
                depth=self.limits.depth,
            )
            answers[route.method, route.path] = endpoint.answer
            served = Served(route.path, endpoint.answer, route.timeout, transacts=route.transaction)
            self._table.add(route.method, route.path, served)
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

    def refused(self, problem: Problem) -> None:
        """Counts a request that the server refused while it read its head, so that no handler and no span saw it."""
        self.telemetry.metrics.http_server("_OTHER", "", problem.status).observe(0.0)

    async def stop(self) -> None:
        """Ends what :meth:`start` began."""
        self._entrance.close()
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
        began = time.monotonic()
        arrived = scope.get(READ_WITHIN_LIMITS) or began
        head = head_of(scope)
        headers = head.named
        trouble: Problem | None = None
        served, in_path = self._unrouted, _NOTHING
        try:
            self._admission.check(scope, headers)
            served, in_path = self._find(scope["method"], scope["path"])
        except Problem as problem:
            trouble = problem
        limit = self._limit(served, headers)
        deadline = None if limit is None else arrived + limit
        sent = Sent(send, scope["method"], request_id(headers))
        if trouble is None and not served.quiet:
            if deadline is not None and deadline <= began:
                trouble = DeadlineExceeded()  # and takes no place
            elif self._entrance.enter_now(began - arrived, transacts=served.transacts):
                sent.began = began
            else:
                refusal = await self._entrance.enter(began - arrived, headers, transacts=served.transacts)
                if refusal is not None:
                    await self._turn_away(refusal, served, sent, began - arrived)
                    return
                sent.began = time.monotonic()
                if deadline is not None and deadline <= sent.began:
                    trouble = DeadlineExceeded()
        call = Call(scope, receive, headers, in_path, self.limits.body, head.token)
        await self._observed(call, served, trouble, deadline, sent, began)

    async def _turn_away(self, refusal: Reply, served: Served, sent: Sent, waited: float) -> None:
        """Sends a refusal. Neither a span nor a line in the log: they would cost more than the answer."""
        self.telemetry.metrics.http_server(sent.method, served.template, refusal.status).observe(waited)
        await sent.whole(refusal)

    async def _observed(
        self, call: Call, served: Served, trouble: Problem | None, deadline: float | None, sent: Sent, began: float
    ) -> None:
        """The exchange in its span, with its context, and what is told about it afterwards."""
        span = self._observer.begin(call, served)
        in_service = serving.set(self._service)
        at_work = context.enter(WorkContext(sent.request_id, deadline, None, call.token))
        in_span = attach(context_of(span))
        self._active += 1
        try:
            await self._exchange(call, served, trouble, deadline, sent)
        finally:
            self._active -= 1
            self._leave(sent)
            detach(in_span)
            context.leave(at_work)
            serving.reset(in_service)
            self._observer.end(call, served, span, sent, time.monotonic() - began)

    def _leave(self, sent: Sent) -> None:
        """Makes place for the next request, once."""
        if sent.began is not None:
            self._entrance.leave(time.monotonic() - sent.began)
            sent.began = None

    async def _exchange(
        self, call: Call, served: Served, trouble: Problem | None, deadline: float | None, sent: Sent
    ) -> None:
        """Answers, and turns whatever goes wrong into a problem document, while that can still be sent."""
        try:
            if trouble is not None:
                answer: Reply | ASGIApp = self._problem_reply(trouble, call)
            elif served.timeout == 0.0 or deadline is None:
                answer = await served.answer(call)
            else:
                watched = self._watch.begin(call, deadline)
                try:
                    answer = await served.answer(call)
                except asyncio.CancelledError as error:
                    raise watched.explain(error) from None
                finally:
                    self._watch.end(watched)
            sent.more_headers = call.more_headers
            if isinstance(answer, Reply):
                await sent.whole(answer)
            else:
                sent.on_head = partial(self._leave, sent)  # what streams for hours keeps nobody out
                await answer(call.scope, call.receive, sent.message)
                if not sent.started:
                    await _silence(call.receive)
        except BaseException as error:  # SystemExit and groups of such too: one handler's word ends no server
            if _ends_the_task(error):
                raise
            if sent.started:
                # Half an answer is out. Only the end of the connection tells the client that it is not whole.
                self._observer.failed(error, call)
                raise
            sent.more_headers = call.more_headers
            await sent.whole(self._problem_reply(error, call))

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

    def _problem_reply(self, error: BaseException, call: Call) -> Reply:
        problem = problem_for(error)
        if problem is None or problem.status >= 500:
            self._observer.failed(error, call)
        try:
            return self._written(problem or InternalError(), call)
        except Exception as unwritable:  # noqa: BLE001  logged as all failures; a detail, member or header that cannot be sent
            unwritable.__cause__ = error
            self._observer.failed(unwritable, call)
            return self._written(InternalError(), call)

    def _written(self, problem: Problem, call: Call) -> Reply:
        context = get_current_span().get_span_context()
        trace_id = f"{context.trace_id:032x}" if context.trace_id else ""
        given = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in problem.headers.items()]
        names = {name for name, _ in given}
        headers: HeaderList = [pair for pair in PROBLEM_HEADERS if pair[0] not in names]
        if problem.status == 503 and "retry-after" not in map(str.lower, problem.headers):
            headers.append((b"retry-after", b"1"))
        headers += [pair for pair in given if pair[0] not in FRAMING]
        check_sendable(problem.status, headers)
        return Reply(problem.status, headers, render(problem, instance=call.scope["path"], trace_id=trace_id))

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
        head = head_of(scope)
        try:
            self._admission.check(scope, head.named)
            mount = next((one for one in self._mounts if one.covers(scope["path"])), None)
            if mount is None:
                raise NotFound
            await mount.websocket(scope, head.token, receive, send)
        except Problem:
            await send({"type": "websocket.close", "code": 1008})


def _options(methods: Methods[Served]) -> Served:
    async def answer(_: Call) -> Reply:
        return Reply(204, [(b"allow", methods.allowed.encode())])

    return Served(methods.template, answer)


async def _nothing_here(_: Call) -> Reply:
    raise NotFound


def _ends_the_task(error: BaseException) -> bool:
    """Whether an exception is no failure of the handler but the end of its task, from outside.

    A handler that waits for a task which somebody cancelled raises ``CancelledError`` as well, and nobody meant it.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, (KeyboardInterrupt, GeneratorExit))


async def _silence(receive: Receive) -> None:
    """An application ended and sent nothing, which is right only where the client has hung up. Waits for nothing.

    Raises:
        UnsendableAnswer: somebody waits.
    """
    try:
        async with asyncio.timeout(0):
            for _ in range(_MOST_PIECES):
                if (await receive())["type"] == "http.disconnect":
                    return
    except TimeoutError:
        pass
    raise UnsendableAnswer("the application ended without an answer")
