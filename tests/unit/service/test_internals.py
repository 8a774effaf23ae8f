"""What a port that the outside reaches tells about the inside."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from microkit import ANYONE, Gateway, Route, Service

pytestmark = pytest.mark.anyio


def edge() -> Service:
    service = Service("edge")
    service.mount("/", Gateway([Route("/api/bills", service="billing")]), allow=ANYONE)
    return service


@pytest.mark.parametrize(
    ("service", "settings", "told"),
    [
        (edge(), {"environment": "production"}, False),
        (edge(), {"environment": "production", "expose_internals": True}, True),
        (edge(), {}, True),
        (edge(), {"expose_internals": False}, False),
        (Service("billing"), {"environment": "production"}, True),
    ],
    ids=["gateway", "gateway told to", "development", "told not to", "service"],
)
async def test_metrics_and_parts_are_not_for_who_reaches_a_gateway_in_production(
    service: Service, settings: dict[str, Any], told: bool
) -> None:
    usual = {"port": 0, "allowed_hosts": ["127.0.0.1"], "services": {"billing": ["http://127.0.0.1:9"]}}
    async with service.instance({**usual, **settings}) as instance, aiohttp.ClientSession() as session:
        async with session.get(f"{instance.url}/metrics") as answer:
            assert answer.status == (200 if told else 404)
            assert ("http_server_request" in await answer.text()) is told
        async with session.get(f"{instance.url}/health") as answer:
            assert ("parts" in await answer.json()) is told
        async with session.get(f"{instance.url}/health/live") as answer:
            assert answer.status == 200
