"""Strangers on a real server in a process of its own: thousands of connections that are stuck, and what they cost."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio

STUCK = 2_000

SERVER = """
import asyncio, resource, sys
from microkit.contract import ANYONE
from microkit.service import Service

most = int(sys.argv[2])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))

if sys.argv[1] == "service":
    service = Service("stranger")

    @service.post("/take", allow=ANYONE)
    async def take(body: bytes) -> int:
        return len(body)
else:
    from microkit.gateway import Gateway, Route

    service = Service("gateway")
    service.mount("/", Gateway([Route("/take", service="nobody", allow=ANYONE)]), allow=ANYONE)

async def main():
    settings = {"port": 0, "max_connections": most, "log_level": "CRITICAL", "body_limit": "64KiB"}
    async with service.instance(settings) as instance:
        print(instance.url.rpartition(":")[2], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


@contextmanager
def serving(kind: str, most: int) -> Iterator[tuple[int, int]]:
    """The port and the process id of a service, or of a gateway."""
    command = [sys.executable, "-c", SERVER, kind, str(most)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < STUCK + 500:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, STUCK + 500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


STATES = {
    "nothing was sent": b"",
    "half a head": b"POST /take HTTP/1.1\r\nHost: a.test\r\nX-Long: " + b"a" * 4000,
    "half a body": b"POST /take HTTP/1.1\r\nHost: a.test\r\nContent-Length: 60000\r\n\r\n" + b"a" * 4000,
    "a chunk without an end": b"POST /take HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"
    + b"a" * 4000,
}

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def stick(port: int, count: int) -> list[Pair]:
    """Connections that begin and do not go on, in turn in each of the states."""
    made: list[Pair] = []
    states = list(STATES.values())
    for start in range(0, count, 100):
        batch = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(min(100, count - start)))
        )
        for number, (reader, writer) in enumerate(batch):
            writer.write(states[number % len(states)])
            made.append((reader, writer))
    return made


async def asks(port: int) -> bytes:
    """The status line for somebody who only wants to know whether it is alive."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health/live HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
    line = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    return line


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["service", "gateway"])
async def test_memory_stays_bounded_with_two_thousand_stuck_connections(kind: str, many_files: None) -> None:
    with serving(kind, STUCK + 100) as (port, pid):
        assert b" 200 " in await asks(port)
        before = resident(pid)
        stuck = await stick(port, STUCK)
        assert b" 200 " in await asks(port), "others are served"
        grown = resident(pid) - before
        assert grown < STUCK * 48 * 1024, f"{grown / STUCK / 1024:.0f} KiB for each"
        for _, writer in stuck:
            writer.close()
        assert b" 200 " in await asks(port)


async def test_beyond_its_connections_a_server_says_so_and_closes(many_files: None) -> None:
    with serving("service", 50) as (port, _):
        stuck = await stick(port, 50)
        refused = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for reader, writer in refused:
            answer = await asyncio.wait_for(reader.read(), 30)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"too-many-connections" in answer
            writer.close()
        for _, writer in stuck:
            with suppress(ConnectionError):
                writer.transport.abort()
        async with asyncio.timeout(30):
            while b" 200 " not in await asks(port):
                await asyncio.sleep(0.05)
