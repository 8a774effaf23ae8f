"""One worker: its process, and what it answers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from microkit.servers.process import ends_with_parent
from microkit.workers.asking import PATIENCE, Asked, session_at
from microkit.workers.place import Place, admin_socket


class WorkerProcess:
    """A process that was started as worker ``number``. Made by :func:`start`."""

    def __init__(self, number: int, name: str, path: Path, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.name = name
        """No other has it, before or after."""
        self.ready = False
        """Whether it was ready once."""
        self.heard = time.monotonic()
        """When it last answered."""
        self.looks = 0
        """How often its metrics were asked for."""
        self.seen = 0
        """The newest of these that were answered."""
        self._path = path
        self._process = process
        self._session = session_at(path, PATIENCE)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it still runs."""
        if self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code, when it has ended; negative where a signal ended it."""
        return await self._process.wait()

    async def ask(self, method: str, path: str, body: bytes | None = None, *, within: float = PATIENCE) -> Asked | None:
        """What its admin endpoints answer; ``None`` if nothing ``within`` so many seconds."""
        if self._session.closed:
            return None
        headers = {"content-type": "application/json"} if body is not None else None
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            patience = aiohttp.ClientTimeout(total=within)
            async with self._session.request(method, path, data=body, headers=headers, timeout=patience) as response:
                answer = Asked(response.status, await response.read())
                self.heard = time.monotonic()
                return answer
        return None

    async def close(self) -> None:
        """Gives back what is kept for it."""
        await self._session.close()
        self._path.unlink(missing_ok=True)


async def start(
    command: Sequence[str],
    number: int,
    name: str,
    folder: Path,
    listener: socket.socket,
    *,
    environment: Mapping[str, str],
) -> WorkerProcess:
    """Starts ``command`` as a worker that accepts on ``listener``. ``folder`` holds the sockets of all, ``environment``
    what the worker is told beside what this process was."""
    path = folder / f"{name}.sock"
    admin = admin_socket(path)
    with admin:
        place = Place(number, name, listener.fileno(), admin.fileno(), folder / SUPERVISOR)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **environment, **place.environment()},
                pass_fds=(listener.fileno(), admin.fileno()),
                start_new_session=True,  # ^C in the terminal is for the supervisor
                preexec_fn=ends_with_parent(signal.SIGTERM),
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return WorkerProcess(number, name, path, process)


SUPERVISOR = "supervisor.sock"
"""The name of the socket at which the workers ask."""
