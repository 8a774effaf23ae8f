"""Paths: one spelling of each, by which the gateway decides and which it also sends on."""

from __future__ import annotations

import re

from microkit.errors import BadRequest

_SUSPICIOUS = re.compile(r"[%\\\x00-\x20\x7f]|//|/\.")
_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_BROKEN_ENCODING = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_CONTROL = re.compile(r"[\x00-\x20\x7f\\]|%(?:0[0-9A-F]|1[0-9A-F]|7F|2F|5C)")
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?=[/;]|\Z)")


def below(path: str, prefix: str) -> bool:
    """Whether ``path`` is ``prefix`` or stands below it."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def canonical_path(path: str) -> str:
    """The one spelling of a path that the gateway decides by and also sends on (RFC 3986, 6.2.2).

    Letters and digits that are percent-encoded are decoded, so that ``/%61dmin`` is seen as what the service will see.

    Raises:
        BadRequest: the path has a second reading, and a gateway and a service could take different ones: empty or dot
            segments, an encoded slash, backslash or control character, broken encoding.
    """
    if _SUSPICIOUS.search(path) is None and path.startswith("/"):
        return path  # as nearly all are; what is below decides about the others
    if "%" in path:
        if _BROKEN_ENCODING.search(path):
            raise BadRequest("The path's percent-encoding is broken")
        path = _ENCODED.sub(_decode_unreserved, path)
    if "//" in path or _DOT_SEGMENT.search(path) or _CONTROL.search(path) or not path.startswith("/"):
        raise BadRequest(
            "The path is ambiguous: it has empty or dot segments, or an encoded slash or control character"
        )
    return path


def _decode_unreserved(encoded: re.Match[str]) -> str:
    character = chr(int(encoded[1], 16))
    return character if character in _UNRESERVED else f"%{encoded[1].upper()}"
