"""What a client is told about a limit: ``RateLimit-Policy``, ``RateLimit`` and ``Retry-After``.

draft-ietf-httpapi-ratelimit-headers-11 (May 2026), whose fields are structured (RFC 9651).
"""

from __future__ import annotations

import re
from math import ceil
from typing import Final

from microkit.errors import DefinitionError, TooManyRequests
from microkit.resilience.rate.limit import Limit, Verdict

_NAME: Final = re.compile(r"[A-Za-z0-9 ._:/{}*-]{1,100}")

Fields = list[tuple[bytes, bytes]]


class Policy:
    """A limit under the name that clients see.

    Raises:
        DefinitionError: the name cannot stand in a header.
    """

    __slots__ = ("_policy", "_told", "limit", "name")

    def __init__(self, name: str, limit: Limit) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"{name!r} cannot be the name of a limit: write letters and digits, dots and dashes")
        self.name = name
        self.limit = limit
        self._told = f'"{name}"'
        window = f";w={int(limit.per)}" if limit.per >= 1 and limit.per.is_integer() else ""
        burst = f";microkit-burst={limit.burst}" if limit.burst != limit.requests else ""
        self._policy = (b"ratelimit-policy", f"{self._told};q={limit.requests}{window}{burst}".encode())

    def fields(self, verdict: Verdict) -> Fields:
        """The header fields, names in lower case; none where nothing was counted.

        ``t`` belongs to ``r``: who spreads what remains evenly over that time keeps within the policy. (The time until
        the bucket is full would promise more than the policy gives, against section 6 of the draft.)
        """
        if not verdict.counted:
            return []
        limit, left = verdict.limit, verdict.remaining
        if verdict.allowed and left:
            window = left * limit.spacing
        else:
            window = verdict.retry_after or max(0.0, verdict.reset + limit.spacing - limit.capacity)
        told = f"{self._told};r={left};t={max(1, ceil(window))}"
        return [self._policy, (b"ratelimit", told.encode())]

    def refusal(self, verdict: Verdict) -> TooManyRequests:
        """429 with the time to wait. It has no jitter, as each bucket refills at a time of its own."""
        wait = max(1, ceil(verdict.retry_after))
        fields = {name.decode(): value.decode() for name, value in self.fields(verdict)}
        return TooManyRequests(
            f"At most {verdict.limit.requests} requests in {verdict.limit.per:g} s; try again in {wait} s",
            extensions={"violated-policies": [self.name]},
            headers={**fields, "retry-after": str(wait)},
        )
