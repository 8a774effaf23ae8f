"""More than a service can do: what is refused, when, and at whose cost. On a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from microkit import context
from microkit.auth.principal import Principal
from microkit.contract import ANYONE, SIGNED_IN
from microkit.errors import Unauthorized
from microkit.resilience.rate import Limit
from microkit.telemetry import Telemetry
from microkit.web import InlineRoute, Limits, Server, Surface, WebApp

pytestmark = pytest.mark.anyio


async def verify(token: str) -> Principal:
    if token == "payment":
        return Principal("service:payment", frozenset({"service"}), token)
    if token in {"ada", "bob"}:
        return Principal(token, frozenset({"member"}), token)
    raise Unauthorized("The token is not valid")


class Work:
    """Handlers that go on when the test says so."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.critical: list[bool] = []
        self.go = asyncio.Semaphore(0)
        self.wire: Any = None

    async def wait(self, name: str) -> str:
        self.began.append(name)
        self.critical.append(context.current().critical)
        await self.go.acquire()
        return name

    async def take(self, body: bytes) -> int:
        return len(body)

    async def whole(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.began) < count:
                await asyncio.sleep(0.005)


Send = Callable[..., Coroutine[Any, Any, Any]]


@asynccontextmanager
async def serving(http: Any, limits: Limits, **rates: Limit) -> AsyncIterator[tuple[Send, Work, WebApp]]:
    work = Work()
    surface = Surface(
        "busy",
        routes=[
            InlineRoute("GET", "/wait", work.wait, ANYONE),
            InlineRoute("GET", "/mine", work.wait, SIGNED_IN),
            InlineRoute("POST", "/take", work.take, ANYONE),
        ],
        limits={name.replace("_", " /"): limit for name, limit in rates.items()},
    )
    app = WebApp(surface, telemetry=Telemetry("busy"), verify=verify, limits=limits)
    server = Server(app, limits=limits)
    await server.start()
    app.health.state = type(app.health.state).READY
    wire = work.wire = http.wire_to(server)

    async def get(target: str, *headers: str) -> Any:
        return await wire(http.request("GET", target, *headers))

    try:
        yield get, work, app
    finally:
        for _ in range(100):
            work.go.release()
        await server.stop(5)
        await app.stop()


async def waiting(app: WebApp, count: int) -> None:
    async with asyncio.timeout(20):
        while app._entrance._gate.waiting < count:
            await asyncio.sleep(0.005)


async def test_one_too_many_is_503_before_its_handler_begins_and_health_is_answered(http: Any) -> None:
    async with serving(http, Limits(concurrency=2, queue=0.05)) as (get, work, _):
        busy = [asyncio.create_task(get(f"/wait?name={n}")) for n in range(2)]
        await work.whole(2)
        answer = await get("/wait?name=third")
        assert answer.status == 503
        assert answer.json["type"] == "urn:problem:service-overloaded"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] in {"1", "2", "3"}
        assert answer.headers["x-request-id"]
        assert not answer.closed
        for path in ("/health/live", "/health/ready", "/metrics", "/docs"):
            assert (await get(path)).status == 200
        metrics = (await get("/metrics")).body.decode()
        assert 'http_server_shed_requests_total{reason="concurrency"} 1.0' in metrics
        assert "http_server_concurrency_limit 2.0" in metrics
        shed = [line for line in metrics.splitlines() if "seconds_count" in line and '"503"' in line]
        assert len(shed) == 1
        assert '"/wait"' in shed[0]
        work.go.release()
        work.go.release()
        assert [one.status for one in await asyncio.gather(*busy)] == [200, 200]
        assert "third" not in work.began
        work.go.release()
        assert (await get("/wait?name=fourth")).status == 200


async def test_what_is_shed_is_not_read_and_a_large_body_ends_its_connection(http: Any) -> None:
    async with serving(http, Limits(concurrency=1, queue=0.05)) as (get, work, app):
        busy = asyncio.create_task(get("/wait?name=a"))
        await work.whole(1)
        server_wire = work.wire
        half = http.request("POST", "/take", "Content-Length: 100", "Content-Type: x/y") + b"half"
        answer = await server_wire(half)
        assert (answer.status, answer.closed) == (503, False)
        large = http.request("POST", "/take", "Content-Length: 500000", "Content-Type: x/y") + b"half"
        answer = await server_wire(large)
        assert (answer.status, answer.closed) == (503, True)
        work.go.release()
        await busy
        assert app._entrance._gate.in_flight == 0


async def test_what_a_service_calls_critical_goes_first_and_what_a_user_calls_so_does_not(http: Any) -> None:
    async with serving(http, Limits(concurrency=1, queue=30)) as (get, work, app):
        tasks = [asyncio.create_task(get("/mine?name=first", "Authorization: Bearer ada"))]
        await work.whole(1)
        for count, (name, *headers) in enumerate(
            [
                ("plain", "Authorization: Bearer bob"),
                ("pretends", "Authorization: Bearer ada", "Request-Priority: critical"),
                ("saga", "Authorization: Bearer payment", "Request-Priority: critical"),
            ],
            start=1,
        ):
            tasks.append(asyncio.create_task(get(f"/mine?name={name}", *headers)))
            await waiting(app, count)
        for _ in range(4):
            work.go.release()
        assert [one.status for one in await asyncio.gather(*tasks)] == [200] * 4
        assert work.began == ["first", "saga", "plain", "pretends"]
        assert work.critical == [False, True, False, False], "it travels on to what is called from there"


async def test_a_request_whose_deadline_has_passed_is_refused_before_work_begins(http: Any) -> None:
    async with serving(http, Limits(concurrency=1, queue=30)) as (get, work, app):
        assert (await get("/wait?name=late", "Request-Timeout-Ms: 0")).status == 504
        busy = asyncio.create_task(get("/wait?name=first"))
        await work.whole(1)
        late = asyncio.create_task(get("/wait?name=queued", "Request-Timeout-Ms: 50"))
        await waiting(app, 1)
        await asyncio.sleep(0.1)
        work.go.release()
        assert (await late).status == 504
        assert (await busy).status == 200
        assert work.began == ["first"]
        assert app._entrance._gate.in_flight == 0


async def test_without_shedding_nobody_is_refused(http: Any) -> None:
    async with serving(http, Limits(concurrency=1, queue=0.0, shedding=False)) as (get, work, _):
        tasks = [asyncio.create_task(get(f"/wait?name={n}")) for n in range(5)]
        await work.whole(5)
        for _ in range(5):
            work.go.release()
        assert [one.status for one in await asyncio.gather(*tasks)] == [200] * 5


async def test_connections_beyond_the_limit_are_answered_and_closed(http: Any) -> None:
    async with serving(http, Limits(connections=3)) as (get, work, _):
        tasks = [asyncio.create_task(get(f"/wait?name={n}")) for n in range(3)]
        await work.whole(3)
        answer = await get("/wait?name=4")
        assert (answer.status, answer.closed) == (503, True)
        assert answer.json["type"] == "urn:problem:too-many-connections"
        assert answer.headers["retry-after"]
        for _ in range(5):
            work.go.release()
        assert [one.status for one in await asyncio.gather(*tasks)] == [200] * 3


async def test_a_rate_limit_counts_each_principal_and_tells_what_is_left(http: Any) -> None:
    async with serving(http, Limits(), GET_mine=Limit(2, per=3600)) as (get, work, _):
        for _ in range(10):
            work.go.release()
        answers = [await get("/mine?name=x", "Authorization: Bearer ada") for _ in range(3)]
        assert [one.status for one in answers] == [200, 200, 429]
        assert [one.headers["ratelimit-policy"] for one in answers] == ['"GET /mine";q=2;w=3600'] * 3
        assert [one.headers["ratelimit"].split(";")[1] for one in answers] == ["r=1", "r=0", "r=0"]
        refused = answers[2]
        assert 1700 < int(refused.headers["retry-after"]) <= 1800
        assert refused.json["violated-policies"] == ["GET /mine"]
        assert (await get("/mine?name=x", "Authorization: Bearer bob")).status == 200
        assert (await get("/wait?name=x")).headers.get("ratelimit") is None
        metrics = (await get("/metrics")).body.decode()
        assert 'http_server_rate_limited_requests_total{outcome="limited",policy="GET /mine"} 1.0' in metrics


async def test_a_limit_by_address_stands_before_the_token_is_looked_at(http: Any) -> None:
    async with serving(http, Limits(), GET_mine=Limit(2, per=3600, by="address")) as (get, _, _app):
        statuses = [(await get("/mine?name=x", f"Authorization: Bearer guess{n}")).status for n in range(4)]
    assert statuses == [401, 401, 429, 429]
