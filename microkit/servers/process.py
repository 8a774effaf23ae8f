"""One server in a process of its own, on a port of the loopback interface."""

from __future__ import annotations

import ctypes
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

from microkit.errors import ConfigurationError
from microkit.servers.ports import free_ports

PATIENCE: Final = 20.0
"""Seconds until a server is up, or has ended in order."""

_PR_SET_PDEATHSIG: Final = 1


class ServerProcess(ABC):
    """A server whose files are in ``folder``. Without a ``port`` it takes a free one, and keeps it.

    It ends with the process that started it, however that ends (on Linux).
    """

    name: ClassVar[str]
    """What people call it."""
    end_by: ClassVar[signal.Signals] = signal.SIGTERM
    """What ends it in order."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: tuple[int, ...] = ()

    def inherit(self, descriptors: tuple[int, ...]) -> None:
        """Its processes get these descriptors, from the next start on."""
        self._inherited = descriptors

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def answers(self, connection: socket.socket) -> bool:
        """Whether the server, just connected to, is ready to work."""

    def environment(self) -> Mapping[str, str] | None:
        """The environment of its process; ``None`` is ours."""
        return None

    def account(self) -> int | None:
        """The user id that it runs under; ``None`` is ours."""
        return None

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
        account = self.account()
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own binary and arguments
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                env=self.environment(),
                user=account,
                group=account,
                extra_groups=None if account is None else [],
                pass_fds=self._inherited,
                start_new_session=True,  # ^C in the terminal is for whoever started it
                preexec_fn=ends_with_parent(self.end_by),  # noqa: PLW1509  one system call, found before the fork
            )
        until = time.monotonic() + PATIENCE
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                last = " / ".join(log.read_text(errors="replace").splitlines()[-3:])[-1000:]
                raise ConfigurationError(f"{self.name} did not start on port {self.port}: {last or 'its log is empty'}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(self.end_by)

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


def ends_with_parent(by: signal.Signals) -> Callable[[], None] | None:
    """What has the kernel send ``by`` to the new process when ours ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork: after it nothing may be loaded
    return lambda: prctl(_PR_SET_PDEATHSIG, int(by))
