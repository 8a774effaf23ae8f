"""What a shared cache may keep and give out again (RFC 9111, sections 3 to 5)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from microkit.gateway.exchange import Answer

_DIRECTIVE: Final = re.compile(
    r'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^,;\s]*)))?\s*(?:,|\Z)'
)
_DELTA: Final = re.compile(r"[0-9]{1,10}", re.ASCII)
_STORABLE: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
"""Final statuses whose meaning a cache knows; the parts of 206 it does not put together."""
_MOST: Final = 2_147_483_648

Directives = Mapping[str, str | None]


def directives(header: str) -> dict[str, str | None]:
    """``Cache-Control`` as names and arguments. What cannot be read counts as ``no-store``: of two readings of the same
    header, the careful one."""
    found: dict[str, str | None] = {}
    at = 0
    while at < len(header):
        if header[at] in " ,\t":  # lists may have empty elements (RFC 9110, 5.6.1)
            at += 1
            continue
        match = _DIRECTIVE.match(header, at)
        if match is None or match.end() == at:
            found["no-store"] = None
            break
        name = match[1].lower()
        argument = match[2] if match[2] is not None else match[3]
        if name in found and found[name] != argument:
            found["no-store" if name in {"max-age", "s-maxage"} else name] = None  # two lifetimes: neither
        else:
            found[name] = argument
        at = match.end()
    return found


def may_store(asked: Mapping[bytes, bytes], identified: bool, answer: Answer, said: Directives) -> bool:
    """Whether the answer to a GET may be kept, for everybody. ``identified``: the caller proved who they are."""
    wishes = directives(asked.get(b"cache-control", b"").decode("latin-1"))
    if answer.status not in _STORABLE or "no-store" in said or "no-store" in wishes or "private" in said:
        return False
    if answer.header(b"set-cookie") is not None or "*" in {one.strip() for one in answer.all(b"vary").split(",")}:
        return False
    if b"range" in asked or answer.header(b"content-range") is not None:
        return False
    if identified or b"authorization" in asked:
        # 3.5. must-revalidate lets it too, by the letter; what is not said to be public is not given to others here.
        return "public" in said or "s-maxage" in said
    # A cookie makes an answer somebody's own more often than its sender remembers to say.
    return b"cookie" not in asked or "public" in said or "s-maxage" in said


def freshness(answer: Answer, said: Directives, default: float) -> float:
    """Seconds for which the answer is fresh, from when it was made (RFC 9111, 4.2.1)."""
    if "no-cache" in said:
        return 0.0
    for name in ("s-maxage", "max-age"):
        if name in said:
            return seconds(said[name])
    expires = answer.header(b"expires")
    if expires is not None:
        date = answer.header(b"date")
        try:
            until = parsedate_to_datetime(expires.decode("latin-1")).timestamp()
            # Without a date it was made when it came (RFC 9110, 6.6.1); the service's own is dropped on its way here.
            made = time.time() if date is None else parsedate_to_datetime(date.decode("latin-1")).timestamp()
        except (ValueError, TypeError, OverflowError):
            return 0.0  # "0" above all: a time in the past
        return max(0.0, until - made)
    return default


def seconds(text: str | None) -> float:
    """A ``delta-seconds``; 0 where it is none, which is the careful reading."""
    return float(min(int(text), _MOST)) if text is not None and _DELTA.fullmatch(text) else 0.0


def may_reuse(wishes: Directives, age: float, lifetime: float) -> bool:
    """Whether an answer of that age serves a request that wishes so (RFC 9111, 5.2.1)."""
    if "no-cache" in wishes or "no-store" in wishes:
        return False
    if "max-age" in wishes and age > seconds(wishes["max-age"]):
        return False
    if "min-fresh" in wishes and lifetime - age < seconds(wishes["min-fresh"]):
        return False
    return age < lifetime


def stale_for(said: Directives, allowed: float) -> float:
    """Seconds after its freshness in which an answer may stand in for an error (RFC 5861, 4)."""
    if {"must-revalidate", "proxy-revalidate", "s-maxage", "no-cache"} & said.keys():
        return 0.0
    return seconds(said["stale-if-error"]) if "stale-if-error" in said else allowed
