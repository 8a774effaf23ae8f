"""py-consul over an aiohttp session of ours.

py-consul's own asyncio half makes its connector with arguments that aiohttp has deprecated, loads the machine's
certificates for plain HTTP too, and drops the headers of refusals. Its client is made to be given another transport,
and the endpoints, their parameters and the reading of answers stay its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from consul import base  # type: ignore[import-untyped]  # py-consul has no types

from microkit.discovery.consul.options import ConsulOptions
from microkit.discovery.directory import RegistryAway

CONNECT_TIMEOUT: Final = 3.0
_LONGEST_ASKED_WAIT: Final = 60.0

_Callback = Callable[[base.Response], Any]
_Params = list[tuple[str, Any]] | None
_Headers = dict[str, str] | None


class Http(base.HTTPClient):  # type: ignore[misc]  # untyped
    """The transport. Calls are bounded by whoever makes them, with ``asyncio.timeout``."""

    def __init__(self, options: ConsulOptions) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        super().__init__(host, options.port, options.scheme)
        self._options = options
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # here, because a session is made inside of a running loop
            secure = ssl.create_default_context(cafile=self._options.ca) if self._options.scheme == "https" else True
            self._session = aiohttp.ClientSession(
                # A blocking query holds its connection for each service that is followed.
                connector=aiohttp.TCPConnector(ssl=secure, limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _send(
        self, callback: _Callback, method: str, uri: str, headers: _Headers, data: str | bytes | None = None
    ) -> Any:
        try:
            async with self._opened().request(method, uri, headers=headers, data=data) as answer:
                body = await answer.text(encoding="utf-8", errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryAway(str(error) or type(error).__name__) from error
        if answer.status == 429 or answer.status >= 500:
            raise RegistryAway(_refusal(answer.status, body), _seconds(answer.headers.get("Retry-After")))
        return callback(base.Response(answer.status, answer.headers, body))

    async def get(
        self, callback: _Callback, path: str, params: _Params = None, headers: _Headers = None, raw: bool = False
    ) -> Any:
        return await self._send(callback, "GET", self.uri(path, params), headers)

    async def put(
        self, callback: _Callback, path: str, params: _Params = None, data: str | bytes = "", headers: _Headers = None
    ) -> Any:
        return await self._send(callback, "PUT", self.uri(path, params), headers, data)

    async def post(
        self, callback: _Callback, path: str, params: _Params = None, data: str = "", headers: _Headers = None
    ) -> Any:
        return await self._send(callback, "POST", self.uri(path, params), headers, data)

    async def delete(self, callback: _Callback, path: str, params: _Params = None, headers: _Headers = None) -> Any:
        return await self._send(callback, "DELETE", self.uri(path, params), headers)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class Client(base.Consul):  # type: ignore[misc]  # untyped
    """py-consul's client over :class:`Http`. What the environment says (``CONSUL_HTTP_ADDR``…) is not looked at: the
    URL says it all; a token from ``CONSUL_HTTP_TOKEN`` is used where the URL has none."""

    def __init__(self, options: ConsulOptions) -> None:
        self._transport = Http(options)
        super().__init__(options.host, options.port, options.token, options.scheme, dc=options.dc, verify=True)
        if options.token:
            self.token = options.token  # py-consul would rather take the environment's

    def http_connect(self, *_: object) -> Http:
        return self._transport


def _refusal(status: int, body: str) -> str:
    reason = " ".join(body.split())[:120]
    return f"it answers {status}{f': {reason}' if reason else ''}"


def _seconds(retry_after: str | None) -> float:
    if retry_after is None or not retry_after.isascii() or not retry_after.isdigit():
        return 0.0
    return min(float(retry_after), _LONGEST_ASKED_WAIT)
