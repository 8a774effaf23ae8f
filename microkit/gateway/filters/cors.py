"""Cross-Origin Resource Sharing: which web pages may call (https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from microkit.errors import DefinitionError, Forbidden, Problem
from microkit.gateway.exchange import Answer, Exchange, Handler, Headers
from microkit.gateway.filters.port import Filter, Phase, Tools

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?")


def check_own(exchange: Exchange, origin: bytes) -> None:
    """Browsers let any page open a WebSocket and send its cookies along: only pages of the host itself may.

    Raises:
        Forbidden: this page is of another one, or of none that can be told (``null``).
    """
    _, _, authority = origin.decode("latin-1").lower().partition("://")
    if not authority or authority != exchange.client.host.lower():
        raise Forbidden("Pages of this origin may not open a WebSocket here")


def _own_sockets(inner: Handler) -> Handler:
    async def guarded(exchange: Exchange) -> Answer:
        origin = exchange.asked.get(b"origin")
        if origin is not None and exchange.scope["type"] == "websocket":
            check_own(exchange, origin)
        return await inner(exchange)

    return guarded


@dataclass(frozen=True, slots=True)
class Cors(Filter):
    """``Cors(origins=("https://shop.example",), credentials=True)``: pages of these origins may call, with these
    methods and request headers, and may read the ``expose`` headers of answers. ``max_age`` (seconds) is how long a
    browser may remember what it was told. ``setting`` names a setting of the service with a list of further origins;
    where there are none at all, only pages of the gateway's own host may open WebSockets, and nothing else is done.

    Strict: an origin is compared as a whole, a preflight that asks for more than is allowed is a 403, and ``"*"`` with
    ``credentials`` is refused at start-up, as every site could then act as its visitor. Requests without ``Origin`` are
    no browser's and pass. Preflights are answered here, before anybody asks for a token.
    """

    kind: ClassVar[str] = "cors"
    phase: ClassVar[Phase] = Phase.EDGE

    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    headers: tuple[str, ...] = ("Authorization", "Content-Type", "Idempotency-Key")
    expose: tuple[str, ...] = ("X-Request-ID", "RateLimit", "Retry-After")
    credentials: bool = False
    max_age: int = 600
    setting: str = ""

    def __post_init__(self) -> None:
        for name in ("origins", "methods", "headers", "expose"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.origins and not self.setting:
            raise DefinitionError("cors: no origin may call; leave the filter out")
        self._check(self.origins)

    def _check(self, origins: tuple[str, ...]) -> None:
        if "*" in origins and (self.credentials or len(origins) > 1):
            raise DefinitionError("cors: '*' with credentials lets every site act as its visitor: name the origins")
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise DefinitionError(f"cors: {origin!r} is no origin; write https://shop.example, without a path")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        origins = (*self.origins, *(tools.setting(self.setting) if self.setting else ()))
        self._check(origins)
        if not origins:
            return _own_sockets(inner)
        anyone = "*" in origins
        allowed_origins = {origin.encode() for origin in origins}
        headers = {name.lower() for name in self.headers}
        told = self._told()

        async def shared(exchange: Exchange) -> Answer:
            origin = exchange.asked.get(b"origin")
            if origin is None:
                answer = await inner(exchange)
                if not anyone:
                    answer.vary("Origin")
                return answer
            allowed = anyone or origin in allowed_origins
            if exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.asked:
                return self._preflight(exchange, origin, headers if allowed else None, anyone)
            if not allowed and exchange.scope["type"] == "websocket":
                check_own(exchange, origin)  # no browser asks before it opens one
            own: Headers = [(b"access-control-allow-origin", b"*" if anyone else origin), *told] if allowed else []
            try:
                answer = await inner(exchange)
            except Problem as problem:
                for name, value in own:
                    problem.headers[name.decode()] = value.decode()
                problem.headers["vary"] = "Origin"
                raise
            answer.headers = [pair for pair in answer.headers if not pair[0].startswith(b"access-control-")] + own
            if not anyone:
                answer.vary("Origin")
            return answer

        return shared

    def _told(self) -> Headers:
        found: Headers = []
        if self.credentials:
            found.append((b"access-control-allow-credentials", b"true"))
        if self.expose:
            found.append((b"access-control-expose-headers", ", ".join(self.expose).encode()))
        return found

    def _preflight(self, exchange: Exchange, origin: bytes, headers: set[str] | None, anyone: bool) -> Answer:
        method = exchange.asked[b"access-control-request-method"].decode("latin-1")
        asked = exchange.asked.get(b"access-control-request-headers", b"").decode("latin-1")
        wanted = {name.strip().lower() for name in asked.split(",") if name.strip()}
        if headers is None or method not in self.methods or not wanted <= headers:
            raise Forbidden("Pages of this origin may not send this request", headers={"vary": "Origin"})
        answer = [
            (b"access-control-allow-origin", b"*" if anyone else origin),
            (b"access-control-allow-methods", ", ".join(self.methods).encode()),
            (b"access-control-allow-headers", ", ".join(self.headers).encode()),
            (b"access-control-max-age", str(self.max_age).encode()),
            (b"vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        if self.credentials:
            answer.append((b"access-control-allow-credentials", b"true"))
        return Answer(204, answer)
