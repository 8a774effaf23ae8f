"""Servers of our own: they come up, keep what they were told through a crash, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from microkit.bus import Bus
from microkit.bus.connect import connect
from microkit.db.server import DatabaseServer
from microkit.errors import ConfigurationError
from microkit.message import Message
from microkit.servers.kafka import KafkaServer
from microkit.servers.postgres import PostgresServer
from microkit.servers.process import ServerProcess
from microkit.servers.valkey import ValkeyServer
from microkit.testing.folder import short_lived

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_lived("mkserver-") as made:
        yield made


def bus_server(kind: str, folder: Path) -> ValkeyServer | KafkaServer:
    return ValkeyServer(folder, durable=True) if kind == "redis" else KafkaServer(folder, durable=True)


def message(value: bytes) -> Message:
    return Message("bills", "k", value, {"ce_id": value.decode(), "ce_type": "Paid"})


async def received(bus: Bus, wanted: int) -> list[bytes]:
    consumer = await bus.subscribe("readers", ["bills"])
    got: list[bytes] = []
    async with asyncio.timeout(60):
        while len(got) < wanted:
            deliveries = await consumer.fetch(100, 1.0)
            got += [delivery.message.value for delivery in deliveries]
            await consumer.ack(deliveries)
    await consumer.close()
    return got


@pytest.mark.parametrize("kind", ["redis", "kafka"])
async def test_a_broker_has_its_messages_and_offsets_again_after_a_crash(kind: str, folder: Path) -> None:
    server = bus_server(kind, folder)
    server.start()
    try:
        for round_ in (b"first", b"second"):
            bus = connect(server.url)
            await bus.start()
            bus.declare("readers", ["bills"])
            await bus.publish([message(b"%s %d" % (round_, each)) for each in range(3)])
            if round_ == b"first":
                assert await received(bus, 3) == [b"first 0", b"first 1", b"first 2"]
                await bus.publish([message(b"left over")])
            await bus.close()
            if isinstance(server, KafkaServer) and server.bucket is not None:
                server.bucket.kill()
            server.restart()
        bus = connect(server.url)
        await bus.start()
        assert await received(bus, 4) == [b"left over", b"second 0", b"second 1", b"second 2"]
        await bus.close()
    finally:
        server.stop()


async def test_a_broker_that_lost_its_bucket_counts_as_ended_and_starts_anew(folder: Path) -> None:
    server = KafkaServer(folder, durable=True)
    server.start()
    try:
        assert server.bucket is not None
        server.bucket.kill()
        assert not server.running
        server.start()
        assert server.running
        bus = connect(server.url)
        await bus.start()
        bus.declare("readers", ["bills"])
        await bus.publish([message(b"told")])
        assert await received(bus, 1) == [b"told"]
        await bus.close()
    finally:
        server.stop()


async def test_postgresql_has_its_databases_again_after_a_crash_and_wants_its_password(folder: Path) -> None:
    server = PostgresServer(folder / "pg")
    server.start()
    try:
        databases = DatabaseServer(server.url)
        await databases.make([databases.url("shop", "orders")])
        server.restart()
        listed = psql(server, server.url, "SELECT datname FROM pg_database")
        assert "shop_orders" in listed.stdout
        refused = psql(server, server.url.replace("microkit:", "microkit:x"), "SELECT 1")
        assert "password authentication failed" in refused.stderr
    finally:
        server.stop()


def test_data_that_were_half_made_when_all_was_killed_are_made_anew(folder: Path) -> None:
    command = "import sys, pathlib as p; from microkit.servers.postgres import *; PostgresServer(p.Path(sys.argv[1]))"
    making = subprocess.Popen(
        [sys.executable, "-c", f"{command}._make()", folder / "pg"], start_new_session=True, stderr=subprocess.DEVNULL
    )
    (folder / "pg").mkdir()
    while making.poll() is None and not [*folder.glob("pg/*/PG_VERSION")]:
        time.sleep(0.002)
    os.killpg(making.pid, signal.SIGKILL)
    assert making.wait() == -signal.SIGKILL
    server = PostgresServer(folder / "pg")
    server.start()
    server.stop()


def test_why_data_cannot_be_made_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "2026-11-22 11:33:06.478 UTC [27634] FATAL:  could not extend file: No space left on device\n"
        "2026-11-22 11:33:06.478 UTC [27634] HINT:  Check free disk space.\nAborted\n"
    )
    ended = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ConfigurationError, match=r"data\.new: could not extend file: No space left on device$"):
        PostgresServer(folder / "pg").start()


def test_data_that_are_not_whole_are_not_touched(folder: Path) -> None:
    (folder / "pg" / "data").mkdir(parents=True)
    (folder / "pg" / "data" / "something").touch()
    with pytest.raises(ConfigurationError, match=r"are not whole .*: put a backup there, or move the folder away"):
        PostgresServer(folder / "pg").start()
    assert [*(folder / "pg" / "data").iterdir()] == [folder / "pg" / "data" / "something"]


def psql(server: PostgresServer, url: str, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [server.binaries / "psql", f"{url}/postgres", "-XqAtc", command], capture_output=True, text=True, check=False
    )


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match=r"Valkey did not start on port \d+: .*in use"):
            Refused(folder, taken.getsockname()[1]).start()


class Refused(ValkeyServer):
    """Whoever listens on its port is not it."""

    def answers(self, connection: socket.socket) -> bool:
        return False


PARENT = """
import sys, time
from pathlib import Path
from microkit.servers.{module} import {server}
server = {server}(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell children of their parent's death")
@pytest.mark.parametrize("server", [ValkeyServer, PostgresServer])
def test_a_server_ends_with_the_process_that_started_it_however_that_ends(
    server: type[ServerProcess], folder: Path
) -> None:
    program = PARENT.format(module=server.__module__.rpartition(".")[2], server=server.__name__)
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while is_there(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_there(pid)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"  # ended; whoever inherited it has not looked yet
