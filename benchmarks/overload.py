"""Three times more than a service can do: what it still does, and how long those that are let in wait.

    python -m benchmarks.overload [--json] [--seconds S]

A service in a process of its own, with operations that compute, 10 ms and 2.5 ms, and one that waits for a connection
of PostgreSQL.
First its capacity is measured (clients that send their next request when they have the answer), then what a request
takes when there is little to do, then three times the capacity, sent by a clock whether answers come or not, from
another process: with load shedding and without. A good answer is a 200 within a second of when it was to be sent. The
time of a request counts from then, too, so that nothing hides in the client (no coordinated omission).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from sqlalchemy import text

from microkit.contract import ANYONE
from microkit.db import Database, Transaction
from microkit.telemetry import Telemetry
from microkit.testing.postgres import cluster
from microkit.web import InlineRoute, Limits, Server, Surface, WebApp

KINDS = ("cpu", "small", "db")
PATIENCE = 1.0
CALM = 0.3
WARM_UP = 10.0
OVER = 3.0
MOST_CONNECTIONS = 2_000
POOL = 10
HELD = 0.02
ROUNDS_OF_HASHING = {"cpu": 30_000, "small": 7_500}  # some 10 ms and 2.5 ms


# The service.


async def serve(url: str, shedding: bool) -> None:
    """Serves on a free port, which it prints, until its standard input ends."""

    async def cpu() -> dict[str, str]:
        return {"hash": hashlib.pbkdf2_hmac("sha256", b"a", b"b", ROUNDS_OF_HASHING["cpu"]).hex()}

    async def small() -> dict[str, str]:
        return {"hash": hashlib.pbkdf2_hmac("sha256", b"a", b"b", ROUNDS_OF_HASHING["small"]).hex()}

    async def db(tx: Transaction) -> dict[str, int]:
        await tx.execute(text(f"SELECT pg_sleep({HELD})"))
        return {"rows": 1}

    logging.disable(logging.CRITICAL)  # a service without shedding is stopped in the midst of a thousand requests
    telemetry = Telemetry("overloaded", log_level="CRITICAL")
    database = Database(url, telemetry=telemetry, pool_size=POOL, max_overflow=0)
    await database.start()
    limits = Limits(shedding=shedding)
    routes = [InlineRoute("GET", f"/{kind.__name__}", kind, ANYONE) for kind in (cpu, small, db)]
    app = WebApp(
        Surface("overloaded", routes=routes), telemetry=telemetry, database=database, limits=limits, access_log=False
    )
    server = Server(app, limits=limits)
    await server.start()
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(1)
    await app.stop()
    await database.close()


# The clients.


class Connection(asyncio.Protocol):
    """Sends one request at a time."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._received = b""
        self.open = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def ask(self, path: str) -> asyncio.Future[int]:
        """The status of the answer; 0 where the connection ended."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"GET /{path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, split, body = self._received.partition(b"\r\n\r\n")
        if split and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self._received = b""
            if self._answer is not None and not self._answer.done():
                self._answer.set_result(int(head[9:12]))

    def close(self) -> None:
        self._transport.close()


class Load:
    """What came of many requests: their statuses, and seconds of those that were answered 200."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self._idle: list[Connection] = []
        self._connections = 0
        self.sent = self.good = self.shed = self.unsent = 0
        self.took: list[float] = []

    async def one(self, due: float, *, counts: bool = True) -> None:
        self.sent += counts
        connection = await self._connection()
        if connection is None:
            self.unsent += counts
            return
        giving_up = asyncio.get_running_loop().call_later(PATIENCE, connection.close)
        status = await connection.ask(self._path)
        given_up = giving_up.when() <= asyncio.get_running_loop().time()
        giving_up.cancel()
        took = time.perf_counter() - due
        if counts:
            self.good += status == 200 and took <= PATIENCE
            self.shed += status == 503
            if status == 200 or given_up:
                self.took.append(took)
        if connection.open:
            self._idle.append(connection)
        else:
            self._connections -= 1

    async def _connection(self) -> Connection | None:
        while self._idle:
            if (found := self._idle.pop()).open:
                return found
            self._connections -= 1
        if self._connections >= MOST_CONNECTIONS:
            return None
        self._connections += 1
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, "127.0.0.1", self._port)
        return made

    async def closed(self, clients: int, seconds: float) -> float:
        """Requests a second with so many clients that wait for their answers."""
        until = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < until:
                await self.one(time.perf_counter())

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return self.good / (time.perf_counter() - began)

    async def opened(self, rate: float, seconds: float) -> None:
        """So many requests a second, at random times (a Poisson process), whatever becomes of those before.

        The first seconds are not counted: in them a burst cannot be told from overload. Requests wait for up to a
        second then, turns of the event loop take as long, and what has waited in vain is worked off.
        """
        tasks = set()
        due = time.perf_counter()
        counted, end = due + WARM_UP, due + WARM_UP + seconds
        while due < end:
            due += random.expovariate(rate)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self.one(due, counts=due >= counted))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        _, late = await asyncio.wait(tasks, timeout=PATIENCE) if tasks else (None, set())
        for task in late:
            task.cancel()

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.took)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("inf")


async def measure(port: int, path: str, what: str, rate: float, seconds: float) -> dict[str, float]:
    load = Load(port, path)
    if what == "capacity":
        await load.closed(16, 1)
        load.good = 0
        return {"per_s": await load.closed(16, seconds)}
    await load.opened(rate, seconds)
    load.close()
    return {
        "sent_s": load.sent / seconds,
        "good_s": load.good / seconds,
        "shed_s": load.shed / seconds,
        "unsent_s": load.unsent / seconds,
        "p50_ms": load.quantile(0.5),
        "p99_ms": load.quantile(0.99),
    }


# The whole.


@contextmanager
def running(url: str, *, shedding: bool) -> Iterator[int]:
    """A service; its port."""
    command = [sys.executable, "-m", "benchmarks.overload", "--serve", url, *([] if shedding else ["--open"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(30)


def asked(port: int, path: str, what: str, rate: float, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.overload", "--load", str(port), path, what, str(rate), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def one_kind(url: str, kind: str, seconds: float) -> dict[str, float]:
    with running(url, shedding=False) as port:
        capacity = asked(port, kind, "capacity", 0, seconds)["per_s"]
    with running(url, shedding=True) as port:
        calm = asked(port, kind, "open", CALM * capacity, seconds)
        over = asked(port, kind, "open", OVER * capacity, 2 * seconds)
    with running(url, shedding=False) as port:
        unshed = asked(port, kind, "open", OVER * capacity, seconds)
    print(kind, f"{capacity:.0f}/s", calm, over, unshed, sep="\n  ", file=sys.stderr)
    return {
        f"{kind}_capacity": capacity,
        f"{kind}_goodput": over["good_s"] / capacity,
        f"{kind}_p99_ratio": over["p99_ms"] / calm["p99_ms"],
        f"{kind}_p99_ms": over["p99_ms"],
        f"{kind}_calm_p99_ms": calm["p99_ms"],
        f"{kind}_goodput_without": unshed["good_s"] / capacity,
        f"{kind}_p99_ms_without": unshed["p99_ms"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of each part; that under overload with shedding takes twice that"
    )
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--load", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve, not options.open))
    elif options.load:
        port, path, what, rate, seconds = options.load
        print(json.dumps(uvloop.run(measure(int(port), path, what, float(rate), float(seconds)))))
    else:
        found: dict[str, float] = {}
        with cluster() as postgres:
            for kind in [options.only] if options.only else KINDS:
                found |= one_kind(postgres.url(postgres.create()), kind, options.seconds)
        found = {name: round(value, 2) for name, value in found.items()}
        print(
            json.dumps(found) if options.json else "\n".join(f"{name:<24}{value:>10}" for name, value in found.items())
        )


if __name__ == "__main__":
    main()
