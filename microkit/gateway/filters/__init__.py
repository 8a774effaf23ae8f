"""What can be done to requests and answers on their way. Each filter is a frozen dataclass of plain data, in a file of
its own; :class:`Filter` is what to subclass for one's own."""

from typing import Final

from microkit.gateway.filters.api_key import ApiKey, ApiKeys
from microkit.gateway.filters.cdn import RedirectToCdn
from microkit.gateway.filters.circuit_breaker import CircuitBreaker
from microkit.gateway.filters.compress import Compress
from microkit.gateway.filters.cors import Cors
from microkit.gateway.filters.fallback import Fallback
from microkit.gateway.filters.headers import RequestHeaders, ResponseHeaders
from microkit.gateway.filters.port import Filter, Phase, Tools
from microkit.gateway.filters.rate_limit import RateLimit
from microkit.gateway.filters.response_cache import ResponseCache
from microkit.gateway.filters.retry import Retry
from microkit.gateway.filters.rewrite_json import RewriteRequestJson, RewriteResponseJson
from microkit.gateway.filters.rewrite_path import RewritePath
from microkit.gateway.filters.size_limit import SizeLimit
from microkit.gateway.filters.strip_prefix import StripPrefix
from microkit.gateway.filters.time_limit import TimeLimit

KINDS: Final[dict[str, type[Filter]]] = {
    one.kind: one
    for one in (
        ApiKeys,
        CircuitBreaker,
        Compress,
        Cors,
        Fallback,
        RateLimit,
        RedirectToCdn,
        RequestHeaders,
        ResponseCache,
        ResponseHeaders,
        Retry,
        RewritePath,
        RewriteRequestJson,
        RewriteResponseJson,
        SizeLimit,
        StripPrefix,
        TimeLimit,
    )
}
"""The filters that a routes file can name, by their kind."""

__all__ = [
    "KINDS",
    "ApiKey",
    "ApiKeys",
    "CircuitBreaker",
    "Compress",
    "Cors",
    "Fallback",
    "Filter",
    "Phase",
    "RateLimit",
    "RedirectToCdn",
    "RequestHeaders",
    "ResponseCache",
    "ResponseHeaders",
    "Retry",
    "RewritePath",
    "RewriteRequestJson",
    "RewriteResponseJson",
    "SizeLimit",
    "StripPrefix",
    "TimeLimit",
    "Tools",
]
