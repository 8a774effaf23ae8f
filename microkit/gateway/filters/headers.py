"""Adds headers and takes headers away, of requests and of answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from microkit.errors import DefinitionError, Problem
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools
from microkit.gateway.headers import HOP_BY_HOP, passes

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_FRAMING: Final = HOP_BY_HOP | {b"content-length"}


def _checked(kind: str, given: Mapping[str, str], names: Iterable[str], free: Callable[[bytes], bool]) -> None:
    for name, value in given.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise DefinitionError(f"{kind}: {name!r}: {value!r} is no header")
    for name in (*given, *names):
        if not free(name.lower().encode()):
            raise DefinitionError(f"{kind}: {name} is the gateway's own business, and cannot be set or removed")


def _pairs(given: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in given.items()]


@dataclass(frozen=True, slots=True)
class RequestHeaders(Filter):
    """``RequestHeaders(set={"X-Channel": "web"}, remove=("Cookie",))``: what the service gets beside, and does not get.

    Raises:
        DefinitionError: a name or value is no header, or is one that the gateway itself sets or frames requests with.
    """

    kind: ClassVar[str] = "request-headers"

    set: Mapping[str, str] = field(default_factory=dict, hash=False)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checked(self.kind, self.set, self.remove, passes)

    def around(self, inner: Handler, tools: Tools) -> Handler:
        added = _pairs(self.set)
        removed = {name for name, _ in added} | {name.lower().encode() for name in self.remove}

        async def changed(exchange: Exchange) -> Answer:
            exchange.headers = [pair for pair in exchange.headers if pair[0] not in removed] + added
            return await inner(exchange)

        return changed


@dataclass(frozen=True, slots=True)
class ResponseHeaders(Filter):
    """``ResponseHeaders(set={"X-Frame-Options": "DENY"}, remove=("X-Powered-By",))``. What is set goes out with
    refusals as well.

    Raises:
        DefinitionError: a name or value is no header, or says where a body ends.
    """

    kind: ClassVar[str] = "response-headers"
    phase: ClassVar[Phase] = Phase.EDGE

    set: Mapping[str, str] = field(default_factory=dict, hash=False)
    remove: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _checked(self.kind, self.set, self.remove, lambda name: name not in _FRAMING)

    def around(self, inner: Handler, tools: Tools) -> Handler:
        added = _pairs(self.set)
        removed = {name for name, _ in added} | {name.lower().encode() for name in self.remove}

        async def changed(exchange: Exchange) -> Answer:
            try:
                answer = await inner(exchange)
            except Problem as problem:
                problem.headers.update(self.set)
                raise
            answer.headers = [pair for pair in answer.headers if pair[0] not in removed] + added
            return answer

        return changed
