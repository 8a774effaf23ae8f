"""The address that a handler takes for its client's."""

from __future__ import annotations

import aiohttp
import pytest

from microkit import ANYONE, ClientAddress, Service

pytestmark = pytest.mark.anyio


def telling() -> Service:
    """A service that says who its client is."""
    service = Service("telling")

    @service.get("/", allow=ANYONE)
    async def who(client: ClientAddress) -> str:
        return client.address

    return service


@pytest.mark.parametrize(("trusted", "told"), [([], "127.0.0.1"), (["127.0.0.1"], "203.0.113.7")])
async def test_a_handler_learns_the_clients_address_from_proxies_that_are_trusted(
    trusted: list[str], told: str
) -> None:
    settings = {"port": 0, "trusted_proxies": trusted}
    async with telling().instance(settings) as instance, aiohttp.ClientSession() as session:
        headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
        async with session.get(instance.url, headers=headers) as response:
            assert await response.json() == told


@pytest.mark.parametrize(
    ("environment", "trusted", "warned"),
    [("production", [], True), ("production", ["127.0.0.1"], False), ("development", [], False)],
)
async def test_production_is_warned_where_addresses_are_asked_for_and_no_proxy_is_trusted(
    environment: str, trusted: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"port": 0, "environment": environment, "allowed_hosts": ["a.example"], "trusted_proxies": trusted}
    async with telling().instance(settings):
        assert ("TELLING_TRUSTED_PROXIES is empty" in caplog.text) is warned
