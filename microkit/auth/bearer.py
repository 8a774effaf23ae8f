"""The ``Authorization`` header (RFC 6750)."""

from __future__ import annotations

import re
from typing import Final

from microkit.errors import Unauthorized

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*) *\Z")


def token_missing() -> Unauthorized:
    """The answer to a call without a token: no error code, as RFC 6750, 3.1 has it."""
    return Unauthorized("Send an access token: Authorization: Bearer …", headers={"WWW-Authenticate": "Bearer"})


def token_refused(reason: str) -> Unauthorized:
    """The answer to a call with a token that does not count. ``reason`` is a sentence in ASCII without quotes."""
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    return Unauthorized(reason, headers={"WWW-Authenticate": challenge})


def bearer_token(authorization: str | None) -> str | None:
    """The token in an ``Authorization`` header, ``None`` where there is no header.

    Raises:
        Unauthorized: the header holds something else.
    """
    if authorization is None:
        return None
    match = _BEARER.match(authorization)
    if match is None:
        raise token_refused("The Authorization header is not Bearer and a token")
    return match[1]
