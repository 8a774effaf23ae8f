"""A bucket of Amazon S3's protocol in a folder: localbucket, made fit for writers that compete and that are killed."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from microkit.errors import MissingExtra
from microkit.servers.process import ServerProcess


class BucketServer(ServerProcess):
    """Buckets are folders of ``folder / "buckets"``, objects their files. It asks for no password.

    Raises:
        MissingExtra: ``localbucket`` is not installed.
    """

    name = "The bucket server"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        if find_spec("localbucket") is None:
            raise MissingExtra("A Kafka broker that keeps its data", "servers")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def make(self, bucket: str) -> None:
        """Makes a bucket, if it is not there."""
        (self.folder / "buckets" / bucket).mkdir(parents=True, exist_ok=True)

    def command(self) -> Sequence[str | Path]:
        serve = [sys.executable, "-m", "microkit.servers.conditional_bucket"]
        return [*serve, self.folder / "buckets", "--port", str(self.port)]

    def answers(self, connection: socket.socket) -> bool:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1")
