"""One route, ready to answer: admitted, bound, run in its transaction, written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from starlette.responses import Response
from starlette.types import ASGIApp

from microkit.auth.principal import Principal
from microkit.context import forget_bearer
from microkit.contract import ANYONE
from microkit.db import Database, Transaction
from microkit.errors import DefinitionError
from microkit.web.access import Access
from microkit.web.binding import Binding
from microkit.web.call import JSON, Call, HeaderList, Reply
from microkit.web.idempotency import Idempotency, Identity
from microkit.web.rate_limits import RateLimits
from microkit.web.route import Route, Transacts
from microkit.web.sent import FRAMING, check_sendable
from microkit.web.shedding import CRITICAL, PRIORITY

Answer = Callable[[Call], Awaitable[Reply | ASGIApp]]
"""Answers a call with a whole reply, or with an application that sends one in pieces."""

_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_NO_STORE: Final = (b"cache-control", b"no-store")
_OPEN: Final[HeaderList] = [_NO_SNIFFING]
# What is for somebody, and what something was changed by (a log-in's tokens), is kept by no cache on the way.
_PRIVATE: Final[HeaderList] = [_NO_SNIFFING, _NO_STORE]
_STREAMS: Final = ("body_iterator", "path")


@dataclass(frozen=True, slots=True)
class Served:
    """What stands in the route table. ``template`` labels metrics and spans; a ``quiet`` one has no span and no line in
    the access log, as probes come by the second; ``timeout`` is in seconds, ``None`` where the limits' holds and
    ``0`` where there is none; one that ``transacts`` waits for a connection of the database."""

    template: str
    answer: Answer
    timeout: float | None = None
    quiet: bool = False
    transacts: Transacts | None = None


class Endpoint:
    """Answers the calls of one route."""

    def __init__(
        self,
        route: Route,
        *,
        access: Access,
        resources: Mapping[Any, object],
        database: Database | None,
        idempotency: Idempotency | None,
        rates: RateLimits,
        depth: int,
    ) -> None:
        self.route = route
        self._allow = route.allow
        self._access = access
        self._binding = Binding(route, resources, depth=depth)
        wants = self._binding.handler.wants
        self._looks_at_token = ANYONE not in route.allow or wants(Principal)
        self._safe = route.safe
        self._database = database if route.transacts else None
        if route.transacts and database is None:
            raise DefinitionError(
                f"{route.name} takes a Transaction, and the service has no database: "
                'give it its tables, Service("billing", tables=Base.metadata)'
            )
        self._idempotency = idempotency if route.remembered else None
        self._write = _writer(route)
        self._rates = rates
        policy = rates.of(route.limited_as)
        # Who guesses tokens from one address is to be stopped before the token is looked at.
        self._policy_before = policy if policy is not None and policy.limit.by != "principal" else None
        self._policy_of_caller = policy if policy is not None and policy.limit.by == "principal" else None
        if self._policy_of_caller is not None:
            self._looks_at_token = True

    async def answer(self, call: Call) -> Reply | ASGIApp:
        if self._policy_before is not None:
            await self._rates.take(self._policy_before, call)
        if self._looks_at_token:
            call.principal = await self._access.admit(call.token, self._allow)
            if call.principal.is_service:
                # A service's token says who calls us. Sent on, it would let the next one take us for that service.
                forget_bearer(critical=call.headers.get(PRIORITY) == CRITICAL)
        if self._policy_of_caller is not None:
            await self._rates.take(self._policy_of_caller, call)
        await self._binding.read(call)
        if self._database is None:
            return self._write(await self._binding.handler(call))
        if self._idempotency is not None and b"idempotency-key" in call.headers:
            return await self._idempotency.once(self._identity(call), lambda tx: self._whole(call, tx))
        return await self._database.run(lambda tx: self._work(call, tx), read_only=self._safe, replica=self._safe)

    def _identity(self, call: Call) -> Identity:
        scope = call.scope
        key = call.headers[b"idempotency-key"].decode("latin-1")
        parts = (scope["method"].encode(), scope["path"].encode(), scope["query_string"], call.body)
        return Identity.of(self.route.name, call.principal.subject, key, parts)

    async def _work(self, call: Call, tx: Transaction) -> Reply | ASGIApp:
        call.transaction = tx
        # Written within the transaction: what cannot be written is rolled back, what is loaded late is still there.
        return self._write(await self._binding.handler(call))

    async def _whole(self, call: Call, tx: Transaction) -> Reply:
        reply = await self._work(call, tx)
        if not isinstance(reply, Reply):
            raise DefinitionError(f"{self.route.name} streams its answer, so it cannot be kept: annotate its result")
        return reply


def _writer(route: Route) -> Callable[[Any], Reply | ASGIApp]:
    """Turns a handler's result into a reply."""
    status = route.status
    secure = _OPEN if route.safe and ANYONE in route.allow else _PRIVATE
    if route.empty:
        return lambda result: Reply(status, secure) if result is None else _unexpected(route, result)
    if route.streams:
        return lambda result: _response(result, secure) if isinstance(result, Response) else _unexpected(route, result)
    as_json: HeaderList = [(b"content-type", JSON), *secure]
    to_json = TypeAdapter(route.result).serializer.to_json
    model = route.result if isinstance(route.result, type) and issubclass(route.result, BaseModel) else None

    def write(result: Any) -> Reply | ASGIApp:
        if type(result) is model:  # validated when it was made
            return Reply(status, as_json, to_json(result, by_alias=True))
        if isinstance(result, Response):
            return _response(result, secure)
        return Reply(status, as_json, to_json(result, by_alias=True, warnings="error"))

    return write


def _unexpected(route: Route, result: Any) -> Reply:
    raise DefinitionError(f"{route.name} returned {type(result).__name__}, not {route.result}")


def _response(response: Response, secure: HeaderList) -> Reply | ASGIApp:
    """A Starlette response as a reply, where it is one piece; with the headers of ``secure`` that it has not."""
    given = {name for name, _ in response.raw_headers}
    response.raw_headers += [pair for pair in secure if pair[0] not in given]
    check_sendable(response.status_code, response.raw_headers)
    if response.background is not None or any(hasattr(response, one) for one in _STREAMS):
        return response
    headers = [(name, value) for name, value in response.raw_headers if name not in FRAMING]
    return Reply(response.status_code, headers, bytes(response.body))
