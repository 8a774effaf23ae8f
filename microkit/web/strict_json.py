"""JSON as strictly as money wants it (I-JSON, RFC 7493), checked before pydantic reads it.

pydantic's own reader takes the last of two equal keys, rounds numbers to doubles without a word, takes ``NaN`` and
integers of four thousand digits. The standard library's scanner has a hook for each of these and costs two microseconds
for a usual body, half of what other ways to find a duplicate key cost.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final

from microkit.web.problems import MalformedJson

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_LONGEST_EXACT: Final = 15
_INT64: Final = range(-(2**63), 2**63)


def check(body: bytes, *, depth: int) -> None:
    """Refuses what is no JSON, or JSON that two readers may understand differently.

    Raises:
        MalformedJson: with what to change.
    """
    if body.count(b"{") + body.count(b"[") > depth:
        _check_depth(body, depth)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8") from None
    if "\\u0000" in text and _NUL.search(text):
        raise MalformedJson("The character U+0000 is in no text that can be stored")
    try:
        _scan(text, 0)
    except StopIteration:
        _check_slowly(text)
    except JSONDecodeError as error:
        raise _malformed(error) from None


def _check_slowly(text: str) -> None:
    """As ``check``, for a body that begins with white space or with nothing JSON begins with."""
    try:
        _DECODER.decode(text)
    except JSONDecodeError as error:
        raise _malformed(error) from None


def _malformed(error: JSONDecodeError) -> MalformedJson:
    if not error.doc.strip():
        return MalformedJson("The body is empty")
    return MalformedJson(f"{error.msg} at line {error.lineno}, column {error.colno}")


def _check_depth(body: bytes, most: int) -> None:
    now = 0
    for token in _TOKENS.finditer(body):
        match body[token.start()]:
            case 0x5B | 0x7B:
                now += 1
                if now > most:
                    raise MalformedJson(f"It is nested deeper than {most} levels")
            case 0x5D | 0x7D:
                now -= 1


def _object(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJson(f"The key {twice[:100]!r} is there twice")


def _integer(token: str) -> None:
    if len(token) > 18 and (len(token) > 20 or int(token) not in _INT64):
        raise MalformedJson("An integer is beyond 64 bits")


def _number(token: str) -> None:
    number = float(token)
    if not math.isfinite(number):
        raise MalformedJson("A number is beyond what a double holds")
    # pydantic reads a Decimal through a double: another amount than was written.
    if (len(token) > _LONGEST_EXACT or not number) and not _exact(token, number):
        raise MalformedJson("A number has more digits than a double holds: send it as a string")


def _exact(token: str, number: float) -> bool:
    try:
        return Decimal(token) == Decimal(repr(number))
    except ArithmeticError:  # an exponent that even Decimal does not take
        return False


def _constant(token: str) -> None:
    raise MalformedJson(f"{token} is no JSON number")


_DECODER: Final = JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_scan: Final = _DECODER.scan_once  # type: ignore[attr-defined]  # documented nowhere, and there since 2.6
