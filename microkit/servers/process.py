"""One server in a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError
from microkit.servers.ports import free_ports

PATIENCE: Final = 10.0
"""Seconds until a server is up, or has ended in order."""


class ServerProcess(ABC):
    """A server whose files are in ``folder``. Without a ``port`` it takes a free one, and keeps it."""

    name: str
    """What people call it."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def answers(self, connection: socket.socket) -> bool:
        """Whether the server, just connected to, is ready to work."""

    @property
    def pid(self) -> int:
        """The server's process.

        Raises:
            RuntimeError: it does not run.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there; one that was ended from outside is not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it on its port, with what it kept of the time before, and waits until it answers.

        Raises:
            ConfigurationError: it did not come up; the end of its log is in the message.
        """
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own binary and arguments
                list(self.command()), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        until = time.monotonic() + PATIENCE
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                text = log.read_text(errors="replace")[-2000:]
                raise ConfigurationError(f"{self.name} did not start on port {self.port}: {text or 'its log is empty'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash does, by SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kills it and starts it again."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stops it where it stands, its connections open: a server that does not answer."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, by: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(by)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _is_up(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            return self.answers(connection)
        return False
