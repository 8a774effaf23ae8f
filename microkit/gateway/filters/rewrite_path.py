"""Asks the service for another path than the client named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Tools
from microkit.gateway.paths import canonical_path


@dataclass(frozen=True, slots=True)
class RewritePath(Filter):
    r"""``RewritePath(r"/people/(\d+)", r"/users/\1")``: where the whole path matches, the service is asked for the
    other.

    What comes out is held to the same rules as what clients send: no rewriting makes ``..`` of dots and slashes.
    """

    kind: ClassVar[str] = "rewrite-path"

    match: str
    to: str

    def __post_init__(self) -> None:
        try:
            re.sub(self.match, self.to, "")
        except (re.error, IndexError) as error:
            raise DefinitionError(f"rewrite-path: {self.match!r} → {self.to!r}: {error}") from None

    def around(self, inner: Handler, tools: Tools) -> Handler:
        pattern = re.compile(self.match)

        async def rewritten(exchange: Exchange) -> Answer:
            found = pattern.fullmatch(exchange.target)
            if found is not None:
                exchange.target = canonical_path(found.expand(self.to))
            return await inner(exchange)

        return rewritten
