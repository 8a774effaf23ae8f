"""Compresses answers for clients that take it."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import ClassVar, Final

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools

_GZIP: Final = 16 + zlib.MAX_WBITS


@dataclass(frozen=True, slots=True)
class Compress(Filter):
    """Answers of at least ``least`` bytes and one of these ``types`` go out as gzip, where ``Accept-Encoding`` takes
    it.

    Never twice (an answer with ``Content-Encoding`` passes), never Server-Sent Events, parts (206), or what says
    ``no-transform``. A strong ETag becomes a weak one, as the bytes are others (RFC 9110, 8.8.1). Answers to requests
    with credentials are compressed as all are: a service that mixes secrets with what others sent into one answer
    should say ``no-transform`` (BREACH).
    """

    kind: ClassVar[str] = "compress"
    phase: ClassVar[Phase] = Phase.EDGE

    least: int = 1024
    level: int = 5
    types: tuple[str, ...] = (
        "text/*",
        "application/json",
        "application/*+json",
        "application/javascript",
        "image/svg+xml",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(self.types))
        if not 1 <= self.level <= 9:
            raise DefinitionError(f"compress: the level is from 1 to 9, not {self.level}")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def compressed(exchange: Exchange) -> Answer:
            answer = await inner(exchange)
            if not self._fits(answer):
                return answer
            answer.vary("Accept-Encoding")
            if not takes_gzip(exchange.asked.get(b"accept-encoding", b"")) or exchange.method == "HEAD":
                return answer
            packer = zlib.compressobj(self.level, zlib.DEFLATED, _GZIP)
            if answer.pieces is None:
                answer.body = packer.compress(answer.body) + packer.flush()
            else:
                answer.pieces, answer.length = _packed(answer.pieces, packer), None
            answer.set(b"content-encoding", b"gzip")
            etag = answer.header(b"etag")
            if etag is not None and not etag.startswith(b"W/"):
                answer.set(b"etag", b"W/" + etag)
            answer.headers = [pair for pair in answer.headers if pair[0] != b"accept-ranges"]
            return answer

        return compressed

    def _fits(self, answer: Answer) -> bool:
        if answer.empty or answer.status == 206 or answer.header(b"content-encoding") is not None:
            return False
        size = len(answer.body) if answer.pieces is None else answer.length
        if size is not None and size < self.least:
            return False
        kind = (answer.header(b"content-type") or b"").partition(b";")[0].strip().lower().decode("latin-1")
        if kind == "text/event-stream" or "no-transform" in answer.all(b"cache-control").lower():
            return False
        return any(_matches(kind, wanted) for wanted in self.types)


def _matches(kind: str, wanted: str) -> bool:
    before, star, after = wanted.partition("*")
    return kind == wanted if not star else kind.startswith(before) and kind.endswith(after)


def takes_gzip(header: bytes) -> bool:
    """Whether ``Accept-Encoding`` takes gzip (RFC 9110, 12.5.3)."""
    found: dict[str, float] = {}
    for part in header.decode("latin-1").lower().split(","):
        name, *parameters = (one.strip() for one in part.split(";"))
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        try:
            found[name] = float(quality)
        except ValueError:
            found[name] = 0.0
    return found.get("gzip", found.get("x-gzip", found.get("*", 0.0))) > 0


async def _packed(pieces: AsyncIterator[bytes], packer: zlib._Compress) -> AsyncIterator[bytes]:
    async for piece in pieces:
        # Flushed piece by piece: who streams means that each part is to arrive.
        if out := packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH):
            yield out
    yield packer.flush()
