"""Paths that two programs may read differently are refused, before any of them decides who may see what."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from microkit.web.problems import UnreadableTarget

MOST_QUERY_FIELDS: Final = 100

_SUSPICIOUS: Final = re.compile(rb"//|/\.|[%\\\x00-\x20\x7f-\xff]")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9a-fA-F]{2})|%2f", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile(rb"[\x00-\x1f\x7f\\]")
_DOT_SEGMENT: Final = re.compile(rb"/\.\.?(?=/|\Z)")
_BAD_QUERY_ESCAPE: Final = re.compile(rb"%(?![0-9a-fA-F]{2})|%00")


def check_path(raw_path: bytes) -> None:
    """Refuses empty and dot segments, encoded slashes, backslashes, control characters and what is not UTF-8.

    Raises:
        UnreadableTarget: the path holds one of these.
    """
    if _SUSPICIOUS.search(raw_path) is None:
        return
    if _BAD_ESCAPE.search(raw_path):
        raise UnreadableTarget("The path holds an escape that is malformed or stands for a slash")
    path = unquote_to_bytes(raw_path)
    if b"//" in path or _DOT_SEGMENT.search(path):
        raise UnreadableTarget("The path holds an empty segment or a dot segment")
    if _UNPRINTABLE.search(path):
        raise UnreadableTarget("The path holds a backslash or a control character")
    try:
        path.decode()
    except UnicodeDecodeError:
        raise UnreadableTarget("The path is not UTF-8") from None


def parse_query(query: bytes) -> list[tuple[str, str]]:
    """Names and values in their order.

    Raises:
        UnreadableTarget: it is not UTF-8, has a malformed escape or U+0000, or more than a hundred fields.
    """
    if _BAD_QUERY_ESCAPE.search(query):
        raise UnreadableTarget("The query holds a malformed escape or the character U+0000")
    try:
        return parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MOST_QUERY_FIELDS
        )
    except UnicodeDecodeError:
        raise UnreadableTarget("The query is not UTF-8") from None
    except ValueError:
        raise UnreadableTarget(f"The query has more than {MOST_QUERY_FIELDS} fields") from None
