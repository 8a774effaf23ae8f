"""The server: uvicorn's protocol on a socket of our own."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from email.utils import formatdate
from functools import partial
from typing import Final

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from microkit.errors import ConfigurationError, Problem
from microkit.web.accepting import BACKLOG, Acceptor
from microkit.web.app import WebApp
from microkit.web.limits import Limits
from microkit.web.protocol import LimitedProtocol

WEBSOCKET_MESSAGE: Final = 1024 * 1024
"""Bytes of a WebSocket message that are taken where the limit on bodies is lower."""

_log = logging.getLogger(__name__)

_LAST_WORDS: Final = 1.0
_LAST_LOOK: Final = 5
"""Turns of the event loop in which what clients had sent before the end is read. One would do for a connection that is
being read from; one that was taken just now begins to be so a turn or two later."""


class Server:
    """Serves one ASGI application on one address, beside others in the same process.

    It installs no signal handlers and runs no lifespan: whoever started it decides when it ends. ``port=0`` takes a
    free port. ``listener`` is a socket that listens already, in the place of both: it is the server's from now on.
    ``websockets`` is for mounted applications that speak it.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: Limits | None = None,
        websockets: bool = False,
        listener: socket.socket | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._limits = limits or Limits()
        self._socket = listener
        self._shared = listener is not None
        self._acceptor: Acceptor | None = None
        self._clock: asyncio.Task[None] | None = None
        self._draining = False
        self._refused = app.refused if isinstance(app, WebApp) else _nobody_counts
        self._state = ServerState()
        self._config = Config(
            app,
            interface="asgi3",
            http=LimitedProtocol,
            ws="auto" if websockets else "none",
            # uvicorn would put 16 MiB together for each connection before anybody could say that it is too much.
            ws_max_size=max(self._limits.body, WEBSOCKET_MESSAGE),
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(self._limits.keep_alive),
        )

    @property
    def port(self) -> int:
        """The port that is listened on, known once bound."""
        return self._bound().getsockname()[1]  # type: ignore[no-any-return]  # an address is Any

    @property
    def url(self) -> str:
        """Where it is reached from this machine: ``http://127.0.0.1:3003``."""
        return reached_at(self._host, self.port)

    def bind(self) -> None:
        """Takes the address, so that it is known and nobody else's before anything is started.

        Raises:
            ConfigurationError: it is taken, not allowed, or not of this machine.
        """
        if self._socket is None:
            self._socket = listening(self._host, self._port)

    def close(self) -> None:
        """Gives an address back that was taken and never served."""
        if self._acceptor is None and self._socket is not None:
            self._socket.close()
            self._socket = None

    async def start(self) -> None:
        """Accepts connections.

        Raises:
            ConfigurationError: as :meth:`bind`.
        """
        self.bind()
        loop = asyncio.get_running_loop()
        self._config.load()
        self._tell_time()
        self._clock = loop.create_task(self._keep_time(), name="http clock")
        make = partial(
            LimitedProtocol,
            limits=self._limits,
            draining=lambda: self._draining,
            refused=self._refused,
            config=self._config,
            server_state=self._state,
            _loop=loop,
        )
        self._acceptor = Acceptor(self._bound(), make, shared=self._shared)

    def drain(self) -> None:
        """Asks clients to leave: each answer from now on says ``Connection: close``.

        Callers that keep connections would else meet the end of one just as they send a request.
        """
        self._draining = True

    async def stop(self, timeout: float = 20.0) -> None:  # noqa: ASYNC109  seconds for all requests, not for one await
        """Accepts nothing more, lets requests under way end for ``timeout`` seconds, and cancels the rest.

        Under way is what a client had sent before, read or not: a busy loop has requests in the kernel's buffers.
        """
        self.drain()
        if self._acceptor is not None:
            await self._acceptor.close()
            for _ in range(_LAST_LOOK):
                await asyncio.sleep(0)
        elif self._socket is not None:
            self._socket.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        until = time.monotonic() + timeout
        while self._state.tasks and (left := until - time.monotonic()) > 0:
            await asyncio.wait(set(self._state.tasks), timeout=left)
        await self._end_by_force()
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        self._acceptor = self._clock = self._socket = None

    async def _end_by_force(self) -> None:
        if self._state.tasks:
            _log.warning("%d requests are not over: they are cancelled", len(self._state.tasks))
            for connection in self._state.connections:
                if isinstance(connection, LimitedProtocol):
                    connection.give_up()
            for task in set(self._state.tasks):
                task.cancel("the server is stopped")
            await asyncio.wait(set(self._state.tasks), timeout=_LAST_WORDS)
        until = time.monotonic() + _LAST_WORDS
        while self._state.connections and time.monotonic() < until:  # noqa: ASYNC110  uvicorn's set tells nobody
            await asyncio.sleep(0.005)  # answers on their way out
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _bound(self) -> socket.socket:
        if self._socket is None:
            raise ConfigurationError("the server is not bound to an address yet")
        return self._socket

    def _tell_time(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._tell_time()


def _nobody_counts(_: Problem) -> None: ...


def reached_at(host: str, port: int) -> str:
    """The base URL, on this machine, of what listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  a name, not an address to bind
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; ``port=0`` takes a free one.

    Raises:
        ConfigurationError: the address is taken, not allowed, or not of this machine.
    """
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigurationError(
            f"host {host!r} is no address of this machine: {error.strerror}; an example: 127.0.0.1"
        ) from None
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.setblocking(False)
        # Taken now and not with the first connection: a second program that binds it later must fail there.
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise ConfigurationError(_why(error, where, host, port)) from None
    return made


def _why(error: OSError, where: str, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} of {host} is taken by another program: stop it, or set another port"
        case errno.EACCES:
            return f"this user may not listen on {where}: set a port above 1023"
        case errno.EADDRNOTAVAIL:
            return f"host {host!r} is no address of this machine; an example: 127.0.0.1"
    return f"{where} cannot be listened on: {error.strerror}"
