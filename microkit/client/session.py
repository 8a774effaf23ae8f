"""The connections of one service to the others."""

from __future__ import annotations

from typing import Final

import aiohttp

KEEP_ALIVE: Final = 4.0
"""Seconds an idle connection is kept. Less than servers keep theirs (uvicorn: 5 s), so that a request does not meet one
that the other side has just closed."""


def open_session(*, connections: int = 0) -> aiohttp.ClientSession:
    """A pool of at most ``connections`` connections, 0 for no bound: then each client's bulkhead is one, and a slow
    neighbour cannot take the connections of the others. No cookies, no proxies from the environment, no time-outs of
    its own (each call brings its deadline). Close it when the service stops."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "microkit"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        trust_env=False,
    )
