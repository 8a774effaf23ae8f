"""The connections of one service to the others."""

from __future__ import annotations

from typing import Final

import aiohttp
from aiohttp import hdrs
from aiohttp.typedefs import LooseHeaders
from multidict import CIMultiDict

KEEP_ALIVE: Final = 4.0
"""Seconds an idle connection is kept. Less than servers keep theirs (uvicorn: 5 s), so that a request does not meet one
that the other side has just closed."""


class Request(aiohttp.ClientRequest):
    """aiohttp's, which copies the headers that the session has made for it one by one, at the cost of sending them."""

    def update_headers(self, headers: LooseHeaders | None) -> None:
        host = self.url.host_port_subcomponent
        if type(headers) is CIMultiDict and host and hdrs.HOST not in headers:
            headers[hdrs.HOST] = host
            self.headers = headers
        else:  # also when aiohttp sends the request again
            super().update_headers(headers)


def open_session(*, connections: int = 256) -> aiohttp.ClientSession:
    """A pool of at most ``connections`` connections: no cookies, no proxies from the environment, no time-outs of its
    own (each call brings its deadline). Close it when the service stops."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE),
        cookie_jar=aiohttp.DummyCookieJar(),
        request_class=Request,
        headers={hdrs.USER_AGENT: "microkit", hdrs.ACCEPT_ENCODING: "gzip, deflate"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        trust_env=False,
    )
