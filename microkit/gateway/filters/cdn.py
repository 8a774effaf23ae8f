"""Sends clients to a content delivery network for what is the same for everybody."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar
from urllib.parse import urlsplit

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Phase, Tools


@dataclass(frozen=True, slots=True)
class RedirectToCdn(Filter):
    """``RedirectToCdn("https://cdn.example/shop", paths=("*.js", "*.css", "/assets/*"))``: GET and HEAD of these paths
    are answered with a redirect to the same path there (``status`` 302, 307, 301 or 308). The address is fixed, so
    nothing that a client sends leads anybody elsewhere. Other requests pass."""

    kind: ClassVar[str] = "redirect-to-cdn"
    phase: ClassVar[Phase] = Phase.DOOR

    base: str
    paths: tuple[str, ...] = ("*",)
    status: int = 302
    max_age: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(self.paths))
        parts = urlsplit(self.base)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment:
            raise DefinitionError(f"redirect-to-cdn: {self.base!r} is no address; write https://cdn.example")
        if self.status not in {301, 302, 307, 308}:
            raise DefinitionError(f"redirect-to-cdn: {self.status} is no redirect; take 302, 307, 301 or 308")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        base = self.base.rstrip("/")

        async def redirected(exchange: Exchange) -> Answer:
            if exchange.method not in {"GET", "HEAD"} or not any(fnmatchcase(exchange.path, one) for one in self.paths):
                return await inner(exchange)
            query = f"?{exchange.query.decode('latin-1')}" if exchange.query else ""
            location = f"{base}{exchange.path}{query}".encode("latin-1")
            return Answer(
                self.status, [(b"location", location), (b"cache-control", b"public, max-age=%d" % self.max_age)]
            )

        return redirected
