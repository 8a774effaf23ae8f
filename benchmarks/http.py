"""What a request costs: microkit, FastAPI, Litestar and Starlette with the same things switched on.

    python -m benchmarks.http [--json] [--rounds N] [--only NAME …]
    python -m benchmarks.http --postgres [--json]

In process: the CPU time of one request, driven through ASGI on uvloop, each contender in processes of its own, in turn,
the best of the rounds (a busy machine only ever adds). Over the wire: one worker, 32 connections that send their next
request when they have the answer; requests a second and the server's CPU time a request. Answers are counted and their
content is looked at.
"""

# ruff: noqa: PLC0415  a process loads what it measures and nothing else

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.contenders import BILL_ID, BODY, CONTENDERS, App, Message
from benchmarks.startup import cpu_s

HEADERS = [
    (b"host", b"127.0.0.1:3003"),
    (b"user-agent", b"benchmark/1.0"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"authorization", b"Bearer " + b"t" * 300),
]
POST_HEADERS = [*HEADERS, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
CONNECTIONS = 32
WIRE_REQUESTS = 8_000
WARM_UP = 500
BATCH = 500  # enough for the garbage collector and the exporter's thread to have their part in each


class Driver:
    """Sends one kind of request to an application, many times."""

    def __init__(self, app: App, method: str) -> None:
        self._app = app
        self.method = method
        self._post = method == "POST"
        self._path = "/bills" if self._post else f"/bills/{BILL_ID}"
        self._message = {"type": "http.request", "body": BODY if self._post else b"", "more_body": False}
        self.answers = 0
        self.last: list[Message] = []

    def _scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 3003),
            "client": ("127.0.0.1", 50000),
            "scheme": "http",
            "root_path": "",
            "method": self.method,
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": list(POST_HEADERS if self._post else HEADERS),
            "state": {},
        }

    async def _receive(self) -> dict[str, Any]:
        return self._message

    async def _send(self, message: Message) -> None:
        self.last.append(message)

    async def run(self, times: int) -> None:
        for _ in range(times):
            self.last.clear()
            await self._app(self._scope(), self._receive, self._send)
            self.answers += self.last[0]["status"] == (201 if self._post else 200)

    def check(self, times: int) -> None:
        """Refuses figures of an application that did not do the work."""
        body = json.loads(b"".join(one.get("body", b"") for one in self.last if one["type"] == "http.response.body"))
        whole = body["payee"] == "Lagos Water" and body["amount"] in {"12.50", 12.5} and len(body["id"]) == 36
        if self.answers != times or not whole:
            raise SystemExit(f"{self.answers} of {times} answered; the last: {self.last}")


async def in_process(app: App, seconds: float) -> dict[str, float]:
    """CPU microseconds a request, the best of many batches.

    POST and GET take turns: a neighbour that keeps the machine busy for half a second is not in one figure alone.
    """
    drivers = [Driver(app, method) for method in ("POST", "GET")]
    best = dict.fromkeys(drivers, float("inf"))
    sent = WARM_UP
    for driver in drivers:
        await driver.run(WARM_UP)
    gc.collect()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for driver in drivers:
            began = time.process_time()
            await driver.run(BATCH)
            best[driver] = min(best[driver], (time.process_time() - began) / BATCH)
        sent += BATCH
    for driver in drivers:
        driver.check(sent)
    return {f"{driver.method.lower()}_us": took * 1e6 for driver, took in best.items()}


async def serve(name: str, app: App) -> None:
    """Serves on a free port, which it prints, until its standard input ends."""
    loop = asyncio.get_running_loop()
    stop: Any
    if name.startswith("microkit"):
        from microkit.web import Server

        server = Server(app)
        await server.start()
        port, stop = server.port, server.stop
    else:
        import uvicorn

        other = uvicorn.Server(
            uvicorn.Config(app, port=0, http="httptools", loop="none", log_config=None, access_log=False, ws="none")
        )
        serving = asyncio.create_task(other.serve())
        while not other.started:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)
        port = other.servers[0].sockets[0].getsockname()[1]

        async def stop() -> None:
            other.should_exit = True
            await serving

    print(port, flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    await stop()


class Client(asyncio.Protocol):
    """One connection that sends its next request when it has the answer."""

    def __init__(self, request: bytes, left: list[int], done: asyncio.Future[None], expected: bytes) -> None:
        self._request = request
        self._left = left
        self._done = done
        self._expected = expected
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if self._left[0] > 0:
            self._left[0] -= 1
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, split, body = self._received.partition(b"\r\n\r\n")
        if not split:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if not head.startswith(self._expected) or b"Lagos Water" not in body:
            self._done.set_exception(SystemExit(f"unexpected answer: {head!r} {body!r}"))
            return
        self._left[1] -= 1
        if self._left[1] == 0:
            self._done.set_result(None)
        else:
            self._next()


async def load(port: int, requests: int) -> float:
    """Sends requests over the connections and returns how many were answered a second."""
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in POST_HEADERS)
    request = b"POST /bills HTTP/1.1\r\n" + lines + b"\r\n" + BODY
    loop = asyncio.get_running_loop()
    left, done = [requests, requests], loop.create_future()
    began = time.perf_counter()
    clients = [
        await loop.create_connection(lambda: Client(request, left, done, b"HTTP/1.1 201"), "127.0.0.1", port)
        for _ in range(CONNECTIONS)
    ]
    await done
    took = time.perf_counter() - began
    for transport, _ in clients:
        transport.close()
    return requests / took


def over_the_wire(name: str) -> dict[str, float]:
    """Requests a second and the server's CPU microseconds a request."""
    command = [sys.executable, "-m", "benchmarks.http", "--serve", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(server.stdout.readline())
        uvloop.run(load(port, WIRE_REQUESTS // 8))
        before = cpu_s(server.pid)
        rate = uvloop.run(load(port, WIRE_REQUESTS))
        cpu = (cpu_s(server.pid) - before) / WIRE_REQUESTS * 1e6
        server.stdin.close()
        server.wait(30)
    return {"per_s": rate, "cpu_us": cpu}


def measured_in_process(name: str, sampling: float, seconds: float) -> dict[str, float]:
    options = ["--measure", name, "--sampling", str(sampling), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks.http", *options]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"}
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def all_rounds(names: Sequence[str], rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Each figure's best over the rounds, in which the contenders take turns."""
    best: dict[str, dict[str, float]] = {name: {} for name in [*names, "microkit_10"]}
    for _ in range(rounds):
        for name, row in best.items():
            sampling, contender = (0.1, "microkit") if name == "microkit_10" else (1.0, name)
            for figure, value in measured_in_process(contender, sampling, seconds).items():
                row[figure] = min(value, row.get(figure, value))
            if name != "microkit_10":
                wire = over_the_wire(name)
                row["per_s"] = max(wire["per_s"], row.get("per_s", 0.0))
                row["cpu_us"] = min(wire["cpu_us"], row.get("cpu_us", wire["cpu_us"]))
    return best


def summary(best: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures that targets are set for."""
    ours = best["microkit"]
    found = {
        "post_us": ours["post_us"],
        "get_us": ours["get_us"],
        "post_us_sampled_10": best["microkit_10"]["post_us"],
    }
    if "microkit_sdk" in best:
        found["post_us_sdk_tracer"] = best["microkit_sdk"]["post_us"]
    for name, key in (
        ("fastapi_full", "ratio_fastapi_full"),
        ("fastapi_full_lean", "ratio_fastapi_full_lean"),
        ("litestar_full", "ratio_litestar_full"),
        ("starlette_full", "ratio_starlette_full"),
        ("starlette_bare", "ratio_starlette_bare"),
    ):
        if name in best:
            found[key] = best[name]["post_us"] / ours["post_us"]
    if "fastapi_full" in best:
        found["wire_ratio_fastapi_full"] = ours["per_s"] / best["fastapi_full"]["per_s"]
    return {key: round(value, 2) for key, value in found.items()}


def show(best: dict[str, dict[str, float]]) -> None:
    print(f"{'':<22}{'POST µs':>9}{'GET µs':>9}{'wire/s':>9}{'wire CPU µs':>13}")
    for name, row in best.items():
        wire = f"{row['per_s']:>9.0f}{row['cpu_us']:>13.0f}" if "per_s" in row else ""
        print(f"{name:<22}{row['post_us']:>9.1f}{row['get_us']:>9.1f}{wire}")
    print("targets: POST ≤ 65 µs, GET ≤ 55 µs, at 10 % sampling ≤ 40 µs, ratio_fastapi_full ≥ 4")
    print(json.dumps(summary(best)))


def transactions() -> Any:
    """The part for ``--postgres``, loaded only where it is asked for: it brings SQLAlchemy along."""
    from benchmarks import transactions as part

    return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement in process")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, help="these, beside microkit")
    parser.add_argument("--postgres", action="store_true", help="the request that commits a row and its event")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--sampling", type=float, default=1.0, help=argparse.SUPPRESS)
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--commit", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        app = CONTENDERS[options.measure](options.sampling)
        print(json.dumps(uvloop.run(in_process(app, options.seconds))))
    elif options.serve:
        uvloop.run(serve(options.serve, CONTENDERS[options.serve](options.sampling)))
    elif options.commit:
        print(json.dumps(uvloop.run(transactions().measure(options.commit, options.url))))
    elif options.postgres:
        found = transactions().all_rounds(options.rounds)
        print(json.dumps(transactions().summary(found))) if options.json else transactions().show(found)
    else:
        names = dict.fromkeys([*(CONTENDERS if options.only is None else options.only), "microkit"])
        best = all_rounds(list(names), options.rounds, options.seconds)
        print(json.dumps(summary(best))) if options.json else show(best)


if __name__ == "__main__":
    main()
