"""Calls to another service over HTTP, with aiohttp."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import count
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from yarl import URL

from microkit.auth.issuer import ServiceTokens
from microkit.client.codec import OperationCodec, WireAnswer, WireRequest
from microkit.client.outgoing import outgoing_headers, time_allowed
from microkit.context import current
from microkit.contract import Operation
from microkit.discovery.port import Endpoint, Resolver
from microkit.errors import BadGateway, DeadlineExceeded, Unavailable
from microkit.telemetry import Telemetry

R = TypeVar("R")

ANSWER_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of an answer, unpacked."""

_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None)  # the deadline is over the whole call, the resolver included


class HttpCaller:
    """Carries out the calls to one service.

    ``tokens`` are what the service calls with in its own name; without them it can only pass its caller's token on.
    ``timeout`` (seconds) bounds a call whose operation names none; the caller's deadline bounds every call.
    A call whose answer was lost raises :class:`BadGateway`: it may have been carried out. :class:`Unavailable` means
    that it was not sent.
    """

    def __init__(
        self,
        service: str,
        *,
        resolver: Resolver,
        session: aiohttp.ClientSession,
        telemetry: Telemetry,
        tokens: ServiceTokens | None = None,
        timeout: float = 10.0,
        answer_limit: int = ANSWER_LIMIT,
    ) -> None:
        self._service = service
        self._resolver = resolver
        self._session = session
        self._telemetry = telemetry
        self._durations = telemetry.metrics.http_client
        self._tokens = tokens
        self._timeout = timeout
        self._answer_limit = answer_limit
        self._codecs: dict[Operation[..., Any], OperationCodec[Any]] = {}
        self._turn = count()

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        codec: OperationCodec[R] | None = self._codecs.get(operation)
        if codec is None:
            codec = self._codecs[operation] = OperationCodec(operation)
        context = current()
        wire = codec.request(arguments)
        seconds = time_allowed(operation, context, self._timeout)
        attributes = {
            "http.request.method": operation.method,
            "url.template": operation.path,
            "peer.service": self._service,
        }
        with self._telemetry.span(
            f"{operation.method} {operation.path}", kind=SpanKind.CLIENT, attributes=attributes
        ) as span:
            wire.headers.update(outgoing_headers(operation, context, seconds, self._tokens))
            answer = await self._timed(operation, wire, seconds, span)
        return codec.result(answer)

    async def _timed(self, operation: Operation[..., Any], wire: WireRequest, seconds: float, span: Span) -> WireAnswer:
        started = time.perf_counter()
        status: int | str = ""
        failure = ""
        try:
            async with asyncio.timeout(seconds):
                answer = await self._ask(wire, await self._pick(), span)
            status = answer.status
            failure = str(status) if answer.status >= 400 else ""  # as OpenTelemetry's conventions want it
        except TimeoutError:
            failure = "timeout"
            raise DeadlineExceeded(
                f"{self._service} did not answer {operation.qualified_name} within {seconds:.3g} s"
            ) from None
        except BaseException as error:
            failure = type(error).__name__
            raise
        else:
            return answer
        finally:
            child = self._durations(self._service, operation.method, operation.path, status, failure)
            child.observe(time.perf_counter() - started)

    async def _pick(self) -> Endpoint:
        """The instance to call: each in turn."""
        endpoints = await self._resolver.resolve(self._service)
        return endpoints[next(self._turn) % len(endpoints)]

    async def _ask(self, wire: WireRequest, endpoint: Endpoint, span: Span) -> WireAnswer:
        address = urlsplit(endpoint.url)
        span.set_attribute("server.address", address.hostname or "")
        if address.port is not None:
            span.set_attribute("server.port", address.port)
        try:
            async with self._session.request(
                wire.method,
                URL(endpoint.url + wire.target, encoded=True),
                data=wire.body,
                headers=wire.headers,
                allow_redirects=False,
                timeout=_NO_TIMEOUT,
            ) as response:
                span.set_attribute("http.response.status_code", response.status)
                if response.status >= 400:
                    span.set_status(Status(StatusCode.ERROR))
                body = await self._read(response)
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or type(error.os_error).__name__
            raise Unavailable(f"{self._service} cannot be reached: {reason}") from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BadGateway(f"{self._service} broke off its answer: {type(error).__name__}") from error
        return WireAnswer(response.status, body, response.headers.get("Retry-After"))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        length = response.content_length
        if length is not None and length <= self._answer_limit and "Content-Encoding" not in response.headers:
            return await response.read()
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > self._answer_limit:  # leaving the answer half read ends its connection
                raise BadGateway(f"{self._service} answered with more than {self._answer_limit} bytes")
        return bytes(body)
