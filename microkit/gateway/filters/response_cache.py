"""Answers that are kept, as a shared cache may (RFC 9111)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

from microkit.errors import DefinitionError, Problem
from microkit.gateway.caching.entry import Entry, etag_matches, etag_of
from microkit.gateway.caching.policy import directives, freshness, may_reuse, may_store, seconds, stale_for
from microkit.gateway.caching.store import CacheStore, MemoryStore
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools

_ROUTE: Final = b":route"
"""Stands among the headers that an answer varies by. No header has such a name."""

_FAILED: Final = frozenset({500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class ResponseCache(Filter):
    """``ResponseCache()``: answers to GET that say for how long they are fresh (``s-maxage``, ``max-age``, ``Expires``)
    are kept and given out again, under their ``Vary``, with an ``Age``, and with an ``ETag`` made where the service
    gives none, so that ``If-None-Match`` is answered 304. ``default`` (seconds) is for answers that say nothing and are
    no errors, 0 keeps none of them.

    Only what HTTP caching lets a shared cache keep: nothing ``private`` or ``no-store``, nothing with ``Set-Cookie`` or
    ``Vary: *``, nothing asked for with ``Authorization`` (or an API key) unless the answer says ``public`` or
    ``s-maxage``. ``stale_if_error`` (seconds) lets a stale answer be given while the service fails, unless it says
    ``must-revalidate``. A stale answer is revalidated with its ETag. Unsafe requests that succeed drop what is kept for
    their path. ``entry`` and ``total`` bound one answer and all of them, in bytes. The store is memory, or the Redis of
    the setting ``cache_url``; answers say ``Cache-Status: microkit; hit`` (RFC 9211).
    """

    kind: ClassVar[str] = "response-cache"
    phase: ClassVar[Phase] = Phase.CACHE

    default: float = 0.0
    stale_if_error: float = 0.0
    entry: int = 256 * 1024
    total: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.default < 0 or self.stale_if_error < 0 or self.entry < 1 or self.total < self.entry:
            raise DefinitionError(f"response-cache: {self} keeps nothing, or more than it may")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        store: CacheStore | None = tools.shared.get(CacheStore)
        if store is None:
            store = tools.shared[CacheStore] = MemoryStore(self.total)
        counted = tools.telemetry.metrics.counter(
            "gateway_cache_total", "Requests by what the cache had for them.", ("http_route", "result")
        )
        return _Caching(self, inner, store, lambda result: counted(tools.route, result).inc(), tools.title).answer


class _Caching:
    """The handler of one route."""

    def __init__(
        self, options: ResponseCache, inner: Handler, store: CacheStore, count: Callable[[str], None], route: str
    ) -> None:
        # Routes of one path (versions, a canary) answer differently, and a change through one concerns all.
        self._route = route.encode()
        self._options = options
        self._inner = inner
        self._store = store
        self._count = count

    async def answer(self, exchange: Exchange) -> Answer:
        base = f"{exchange.client.scheme}://{exchange.client.host}{exchange.path}?{exchange.query.decode('latin-1')}"
        if exchange.method not in {"GET", "HEAD"}:
            answer = await self._inner(exchange)
            if not exchange.safe and 200 <= answer.status < 400:
                await self._store.drop(base)  # RFC 9111, 4.4
            return answer
        if exchange.body is not None or b"range" in exchange.asked:
            return await self._inner(exchange)
        return await self._read(exchange, base)

    async def _read(self, exchange: Exchange, base: str) -> Answer:
        wishes = directives(exchange.asked.get(b"cache-control", b"").decode("latin-1"))
        if b"cache-control" not in exchange.asked and exchange.asked.get(b"pragma", b"").lower() == b"no-cache":
            wishes = {"no-cache": None}
        entry = await self._store.find(base, {**exchange.asked, _ROUTE: self._route})
        now = time.time()
        if entry is not None and may_reuse(wishes, entry.age_at(now), entry.lifetime):
            self._count("hit")
            return self._given(exchange, entry, now, "hit")
        if "only-if-cached" in wishes:
            return Answer(504, [(b"cache-status", b"microkit; fwd=request")])
        if exchange.method == "HEAD":
            return await self._inner(exchange)
        return await self._ask(exchange, base, entry)

    async def _ask(self, exchange: Exchange, base: str, entry: Entry | None) -> Answer:
        """The service's answer, kept where that is allowed; a stale one where the service fails."""
        etag = exchange.asked.get(b"if-none-match")
        exchange.drop(b"if-none-match")  # the whole answer is wanted, for others too
        exchange.drop(b"if-modified-since")
        if entry is not None and entry.etag is not None and not entry.etag.startswith(b'"mk-'):
            exchange.set(b"if-none-match", entry.etag)
        try:
            answer = await self._inner(exchange)
        except Problem as problem:
            if problem.status in _FAILED and (stale := self._stale(exchange, entry)) is not None:
                return stale
            raise
        if answer.status in _FAILED and (stale := self._stale(exchange, entry)) is not None:
            if answer.close is not None:
                answer.close()
            return stale
        if answer.status == 304 and entry is not None:
            return await self._renewed(exchange, base, entry, answer)
        self._count("miss")
        await self._keep(exchange, base, answer)
        return _not_modified(answer, etag)

    async def _renewed(self, exchange: Exchange, base: str, entry: Entry, answer: Answer) -> Answer:
        """The stale entry, which the service says is still right (RFC 9111, 4.3.4)."""
        fresh = {name for name, _ in answer.headers}
        headers = [pair for pair in entry.headers if pair[0] not in fresh] + answer.headers
        whole = Answer(entry.status, headers, entry.body)
        self._count("revalidated")
        await self._keep(exchange, base, whole)
        return _not_modified(whole, exchange.asked.get(b"if-none-match"))

    async def _keep(self, exchange: Exchange, base: str, answer: Answer) -> None:
        said = directives(answer.all(b"cache-control"))
        identified = not exchange.principal.anonymous
        # An error is kept where it says so itself: one client's odd request must not be everybody's answer.
        lifetime = freshness(answer, said, self._options.default if answer.status < 400 else 0.0)
        grace = stale_for(said, self._options.stale_if_error)
        worth = lifetime > 0 or answer.header(b"etag") is not None
        if not worth or not may_store(exchange.asked, identified, answer, said):
            return
        body = await answer.whole(self._options.entry)
        if body is None:
            return
        if answer.header(b"etag") is None and answer.status == 200:
            answer.set(b"etag", etag_of(body))
        age = seconds((answer.header(b"age") or b"0").decode("latin-1"))
        vary = [
            _ROUTE.decode(),
            *sorted({one.strip().lower() for one in answer.all(b"vary").split(",") if one.strip()}),
        ]
        kept = [pair for pair in answer.headers if pair[0] not in {b"age", b"cache-status"}]
        entry = Entry(answer.status, kept, body, time.time(), age, lifetime, grace)
        if entry.size <= self._options.entry:
            await self._store.keep(base, {**exchange.asked, _ROUTE: self._route}, vary, entry)
        answer.headers.append((b"cache-status", b"microkit; fwd=miss; stored"))

    def _stale(self, exchange: Exchange, entry: Entry | None) -> Answer | None:
        now = time.time()
        if entry is None or entry.age_at(now) >= entry.lifetime + entry.grace:
            return None
        self._count("stale")
        return self._given(exchange, entry, now, "hit; detail=stale-if-error")

    def _given(self, exchange: Exchange, entry: Entry, now: float, how: str) -> Answer:
        headers = [*entry.headers, (b"age", b"%d" % entry.age_at(now)), (b"cache-status", f"microkit; {how}".encode())]
        return _not_modified(Answer(entry.status, headers, entry.body), exchange.asked.get(b"if-none-match"))


def _not_modified(answer: Answer, wanted: bytes | None) -> Answer:
    """304 where the client has these very bytes already."""
    etag = answer.header(b"etag")
    if wanted is None or etag is None or answer.status != 200 or not etag_matches(wanted, etag):
        return answer
    if answer.close is not None:
        answer.close()
    headers = [
        pair for pair in answer.headers if pair[0] not in {b"content-type", b"content-encoding", b"content-length"}
    ]
    return Answer(304, headers)
