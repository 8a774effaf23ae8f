"""The Consul adapter keeps to Consul's documented HTTP API: the index, checks, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from microkit.discovery.consul import ConsulDiscovery, ConsulOptions
from microkit.discovery.consul.catalog import ConsulCatalog
from microkit.discovery.consul.http import Client
from microkit.discovery.directory import RegistryAway
from microkit.discovery.port import Endpoint
from microkit.errors import Unavailable
from microkit.telemetry import Telemetry
from microkit.testing.consul import ConsulServer, Fault
from microkit.testing.discovery_suite import PATIENCE, endpoint, until_known, urls

pytestmark = pytest.mark.anyio

A = endpoint(2, id="billing-a")
B = endpoint(3, id="billing-b")

Opener = Callable[..., ConsulDiscovery]


@pytest.fixture
async def consul() -> AsyncIterator[ConsulServer]:
    async with ConsulServer() as consul:
        yield consul


@pytest.fixture
async def opened(consul: ConsulServer) -> AsyncIterator[Opener]:
    telemetry, all_opened = Telemetry("test"), list[ConsulDiscovery]()

    def open_(query: str = "", userinfo: str = "") -> ConsulDiscovery:
        url = f"consul://{userinfo}127.0.0.1:{consul.port}{query}"
        all_opened.append(ConsulDiscovery(ConsulOptions.from_url(url), telemetry))
        return all_opened[-1]

    yield open_
    consul.fault = None
    for discovery in all_opened:
        await discovery.close()
    await telemetry.close()


@pytest.fixture
async def catalog(consul: ConsulServer) -> AsyncIterator[ConsulCatalog]:
    options = ConsulOptions.from_url(f"{consul.url}?wait=2s")
    client = Client(options)
    yield ConsulCatalog(client, options)
    await client.http.close()


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.02)


async def test_the_first_question_does_not_wait_and_the_next_ones_do(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened()
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    await eventually(lambda: len(consul.queries) == 2)
    first, second = consul.queries
    assert "index" not in first
    assert "wait" not in first
    assert int(second["index"]) >= 1
    milliseconds = int(second["wait"].removesuffix("ms"))
    assert 54_000 <= milliseconds <= 60_000  # a minute, less up to a tenth


async def test_waits_are_spread(consul: ConsulServer, opened: Opener) -> None:
    discoveries = [opened() for _ in range(8)]
    for discovery in discoveries:
        await urls(discovery, "billing")
    await eventually(lambda: len(consul.queries) == 16)
    assert len({query["wait"] for query in consul.queries if "wait" in query}) > 1


async def test_an_index_that_goes_backwards_is_reset_to_zero(consul: ConsulServer, catalog: ConsulCatalog) -> None:
    consul.agent.index = consul.agent.extinction = 70
    assert (await catalog.find("billing", 0)).cursor == 70
    consul.fault = Fault(index="40")
    assert (await catalog.find("billing", 70)).cursor == 0


async def test_an_index_of_zero_is_taken_as_one(consul: ConsulServer, catalog: ConsulCatalog) -> None:
    consul.fault = Fault(index="0")
    assert (await catalog.find("billing", 0)).cursor == 1


@pytest.mark.parametrize("index", ["", "many"])
async def test_an_answer_without_an_index_is_none(consul: ConsulServer, catalog: ConsulCatalog, index: str) -> None:
    consul.fault = Fault(index=index)
    with pytest.raises(RegistryAway, match="ndex"):
        await catalog.find("billing", 0)


@pytest.mark.parametrize("body", ["", "[", "{}x", '[{"Service": {}}]', '[{"Service": null}]', "7"])
async def test_an_answer_that_cannot_be_read_loses_nothing(consul: ConsulServer, opened: Opener, body: str) -> None:
    discovery = opened()
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    consul.fault = Fault(body=body, path="/v1/health/")
    consul.touch()
    await eventually(lambda: bool(discovery.standings()[0].trouble))
    assert await urls(discovery, "billing") == {A.url}
    consul.fault = None
    await discovery.register("billing", B)
    await until_known(discovery, "billing", A, B)


async def test_changes_are_seen_after_the_agent_came_back_with_a_lower_index(
    consul: ConsulServer, opened: Opener
) -> None:
    consul.agent.index = 100_000
    discovery, registrar = opened(), opened("?ttl=1s")
    await registrar.register("billing", A)
    await until_known(discovery, "billing", A)
    await consul.restart(index=1)
    await registrar.register("billing", B)
    await until_known(discovery, "billing", A, B)


async def test_changes_are_seen_after_an_older_snapshot_was_restored(consul: ConsulServer, opened: Opener) -> None:
    consul.agent.index = 100_000
    discovery = opened()
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    consul.reset(5)
    await discovery.register("billing", B)
    await until_known(discovery, "billing", A, B)


@pytest.mark.parametrize("index", ["0", "1"])
async def test_an_index_that_never_grows_is_no_busy_loop(consul: ConsulServer, opened: Opener, index: str) -> None:
    discovery = opened()
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    consul.fault = Fault(index=index, path="/v1/health/")
    consul.touch()
    await asyncio.sleep(0.3)
    assert await urls(discovery, "billing") == {A.url}
    assert len(consul.queries) <= 12  # a burst of five, then one a second


async def test_an_index_that_grows_without_a_change_is_no_busy_loop_and_no_change(
    consul: ConsulServer, opened: Opener
) -> None:
    discovery = opened()
    await discovery.register("billing", A)
    known = await discovery.resolve("billing")
    for _ in range(50):
        consul.touch()
        await asyncio.sleep(0.01)
    assert await discovery.resolve("billing") is known
    assert len(consul.queries) <= 12


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_agent_that_refuses_is_left_alone_as_long_as_it_asks_for(
    consul: ConsulServer, opened: Opener, status: int
) -> None:
    discovery = opened()
    consul.fault = Fault(status=status, retry_after="3600")
    with pytest.raises(Unavailable, match=f"answers {status}"):
        await discovery.resolve("billing")
    await asyncio.sleep(0.3)
    assert consul.requests["GET /v1/health/service"] == 1


async def test_refusals_without_a_time_are_asked_again_with_growing_pauses(
    consul: ConsulServer, opened: Opener
) -> None:
    discovery = opened()
    consul.fault = Fault(status=500)
    await urls(discovery, "billing")
    await asyncio.sleep(1.0)
    assert 1 < consul.requests["GET /v1/health/service"] <= 8
    consul.fault = None
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)


async def test_heartbeats_keep_an_instance_and_their_end_loses_it(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened("?ttl=1s")
    await discovery.register("billing", A)
    await eventually(lambda: consul.requests["PUT /v1/agent/check"] >= 5)
    assert consul.agent.services["billing-a"].passing
    assert consul.requests["PUT /v1/agent/service"] == 1
    check = consul.agent.services["billing-a"].checks["service:billing-a"]
    assert (check.ttl, check.deregister_after) == (1.0, 60.0)


async def test_a_check_that_failed_while_the_instance_slept_passes_again(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened("?ttl=1s")
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    consul.agent.advance(30)
    assert not consul.agent.services["billing-a"].passing
    await eventually(lambda: consul.agent.services["billing-a"].passing)


async def test_who_was_reaped_is_registered_again(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened("?ttl=1s")
    await discovery.register("billing", A)
    consul.agent.advance(30)
    consul.agent.advance(120)
    assert not consul.agent.services
    await eventually(lambda: "billing-a" in consul.agent.services)
    assert consul.requests["PUT /v1/agent/service"] == 2


async def test_an_old_agents_answer_to_an_unknown_check_is_understood(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened("?ttl=1s")
    await discovery.register("billing", A)
    consul.fault = Fault(
        status=500, body='CheckID "service:billing-a" does not have associated TTL', path="/v1/agent/check/"
    )
    await eventually(lambda: consul.requests["PUT /v1/agent/service"] >= 2)


async def test_the_agent_asks_the_instance_where_the_check_is_http(consul: ConsulServer, opened: Opener) -> None:
    status = 200

    async def ready(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/health/ready", ready)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    listening = Endpoint(f"http://127.0.0.1:{runner.addresses[0][1]}", id="billing-a")
    discovery = opened("?check=http&interval=1s&deregister_after=2m")
    await discovery.register("billing", listening)
    await consul.run_checks()
    await until_known(discovery, "billing", listening)
    check = consul.agent.services["billing-a"].checks["service:billing-a"]
    assert (check.http, check.interval, check.deregister_after) == (f"{listening.url}/health/ready", 1.0, 120.0)
    status = 503
    await consul.run_checks()
    assert not consul.agent.services["billing-a"].passing
    await runner.cleanup()
    await consul.restart()
    await eventually(lambda: "billing-a" in consul.agent.services)


async def test_only_instances_with_the_tags_are_found(consul: ConsulServer, opened: Opener) -> None:
    registrar, picky = opened(), opened("?tag=v2&tag=canary")
    await registrar.register("billing", endpoint(2, id="a", tags=("v2", "canary")))
    await registrar.register("billing", endpoint(3, id="b", tags=("v2",)))
    await until_known(picky, "billing", endpoint(2))
    assert consul.queries[-1]["filter"] == '"v2" in Service.Tags and "canary" in Service.Tags'


async def test_the_token_goes_with_each_request_and_is_shown_nowhere(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened(userinfo=":s%40cret@")
    await discovery.register("billing", A)
    await until_known(discovery, "billing", A)
    assert consul.tokens == {"s@cret"}
    assert "cret" not in repr(ConsulOptions.from_url("consul://:s%40cret@127.0.0.1"))


async def test_two_services_at_one_agent_keep_apart_what_has_one_id(consul: ConsulServer, opened: Opener) -> None:
    discovery = opened()
    await discovery.register("billing", endpoint(2, id="same"))
    await discovery.register("payment", endpoint(3, id="same"))
    await until_known(discovery, "billing", endpoint(2))
    await until_known(discovery, "payment", endpoint(3))
