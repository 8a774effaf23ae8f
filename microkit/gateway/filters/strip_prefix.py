"""Takes the beginning of the path off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microkit.errors import DefinitionError
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Tools
from microkit.gateway.paths import below, canonical_path


@dataclass(frozen=True, slots=True)
class StripPrefix(Filter):
    """``StripPrefix("/v1")``: the service is asked for ``/bills`` instead of ``/v1/bills``. A path that does not begin
    so is left alone. For one route ``Route(strip_prefix=…)`` does more: it also leads redirects back."""

    kind: ClassVar[str] = "strip-prefix"

    prefix: str

    def __post_init__(self) -> None:
        if not self.prefix.startswith("/") or self.prefix.endswith("/") or canonical_path(self.prefix) != self.prefix:
            raise DefinitionError(f"strip-prefix: {self.prefix!r} is no prefix; write /v1")

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def stripped(exchange: Exchange) -> Answer:
            if below(exchange.target, self.prefix):
                exchange.target = exchange.target[len(self.prefix) :] or "/"
            return await inner(exchange)

        return stripped
