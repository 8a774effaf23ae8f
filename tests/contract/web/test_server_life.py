"""A server from its address to its end: bound, ready, draining, stopped."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from microkit.errors import ConfigurationError
from microkit.web import Health, Server, State
from tests.contract.web.serving import Serve, at

pytestmark = pytest.mark.anyio


async def test_readiness_follows_state_and_critical_parts(serve: Serve) -> None:
    health = Health()
    running = await serve(health=health)
    assert (await running.ask("GET", "/health/startup"))[0] == 503
    assert (await running.ask("GET", "/health/ready"))[0] == 503
    assert (await running.ask("GET", "/health/live"))[0] == 200
    health.state = State.READY
    assert (await running.ask("GET", "/health/startup"))[0] == 200
    assert (await running.ask("GET", "/health/ready"))[0] == 200

    async def away() -> None:
        raise ConnectionError("no route to host")

    health.part("cache", away, critical=False)
    assert (await running.ask("GET", "/health/ready"))[0] == 200
    health.part("database", away)
    assert (await running.ask("GET", "/health/ready"))[0] == 503
    status, report, _ = await running.ask("GET", "/health")
    assert (status, report["status"], report["state"]) == (503, "down", "ready")
    assert report["parts"]["database"]["status"] == "down"
    assert report["parts"]["database"]["error"] == "ConnectionError: no route to host"
    health.state = State.DRAINING
    assert (await running.ask("GET", "/health/live"))[0] == 200
    status, body, _ = await running.ask("GET", "/health/ready")
    assert (status, body["state"]) == (503, "draining")


async def test_stopping_lets_requests_end_and_takes_no_more(serve: Serve) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def handler() -> str:
        entered.set()
        await leave.wait()
        return "whole"

    running = await serve(at(handler))
    asked = asyncio.create_task(running.ask("GET", "/"))
    await entered.wait()
    stopped = asyncio.create_task(running.server.stop(10))
    await asyncio.sleep(0.05)
    assert not stopped.done()
    async with aiohttp.ClientSession() as other:
        with pytest.raises(aiohttp.ClientConnectionError):
            await other.get(f"{running.client._base_url}")
    leave.set()
    status, body, headers = await asked
    assert (status, body, headers["connection"]) == (200, "whole", "close")
    await stopped


async def test_stopping_cancels_what_does_not_end_in_time(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler() -> None:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = await serve(at(handler, timeout=60))
    asked = asyncio.create_task(running.ask("GET", "/"))
    await entered.wait()
    await running.server.stop(0.05)
    assert cancelled.is_set()
    with pytest.raises(aiohttp.ClientError):
        status, _, _ = await asked
        raise aiohttp.ClientError(str(status))


async def test_a_draining_server_asks_its_clients_to_leave(serve: Serve) -> None:
    async def handler() -> str:
        return "x"

    running = await serve(at(handler))
    _, _, headers = await running.ask("GET", "/")
    assert "connection" not in headers
    running.server.drain()
    _, _, headers = await running.ask("GET", "/")
    assert headers["connection"] == "close"


async def test_a_taken_port_is_one_clear_sentence(serve: Serve) -> None:
    running = await serve()
    second = Server(running.app, port=running.server.port)
    with pytest.raises(ConfigurationError, match=f"port {running.server.port} of 127.0.0.1 is taken"):
        await second.start()
    await second.stop(1)


async def test_a_host_that_is_not_of_this_machine_is_one_clear_sentence(serve: Serve) -> None:
    running = await serve()
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        Server(running.app, "192.0.2.1", 0).bind()
    with pytest.raises(ConfigurationError, match="no address of this machine"):
        Server(running.app, "no.such.host.invalid", 0).bind()


async def test_a_port_is_known_and_taken_before_the_server_starts(serve: Serve) -> None:
    running = await serve()
    early = Server(running.app)
    early.bind()
    with pytest.raises(ConfigurationError, match="taken"):
        Server(running.app, port=early.port).bind()
    await early.stop(1)
