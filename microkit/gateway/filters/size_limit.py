"""How large requests and answers may be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import BadGateway, BodyTooLarge, DefinitionError
from microkit.gateway.body import RequestBody
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools


@dataclass(frozen=True, slots=True)
class SizeLimit(Filter):
    """``SizeLimit(request=64 * 1024, response=10 * 1024 * 1024)``, in bytes; ``None`` leaves it as it is.

    A request beyond the limit is a 413, at once where its head says so, else as soon as it is passed. An answer beyond
    it is a 502 where its head says so; one that is found out on the way is cut off, and the client sees that it is not
    whole.
    """

    kind: ClassVar[str] = "size-limit"
    phase: ClassVar[Phase] = Phase.ADMISSION

    request: int | None = None
    response: int | None = None

    def __post_init__(self) -> None:
        if (self.request is not None and self.request < 0) or (self.response is not None and self.response < 1):
            raise DefinitionError(f"size-limit: {self} allows nothing")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def bounded(exchange: Exchange) -> Answer:
            if self.request is not None:
                if isinstance(exchange.body, RequestBody):
                    exchange.body.limit_to(self.request)
                elif exchange.body is not None and len(exchange.body) > self.request:
                    raise BodyTooLarge(f"At most {self.request} bytes are taken here")
            answer = await inner(exchange)
            return answer if self.response is None else within(answer, self.response)

        return bounded


def within(answer: Answer, limit: int) -> Answer:
    """The answer, which ends where it passes the limit.

    Raises:
        BadGateway: it is known to be larger.
    """
    size = len(answer.body) if answer.pieces is None else answer.length
    if size is not None and size > limit:
        if answer.close is not None:
            answer.close()
        raise BadGateway(f"The service gave an answer of more than {limit} bytes")
    if answer.pieces is not None and answer.length is None:
        answer.pieces = _cut(answer.pieces, limit)
    return answer


async def _cut(pieces: AsyncIterator[bytes], limit: int) -> AsyncIterator[bytes]:
    async for piece in pieces:
        limit -= len(piece)
        if limit < 0:
            raise BadGateway("The service gave an answer beyond the limit")
        yield piece
