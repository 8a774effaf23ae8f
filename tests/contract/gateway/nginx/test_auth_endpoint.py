"""Where a proxy in front asks who calls."""

from __future__ import annotations

import aiohttp
import pytest

from microkit.contract import ANYONE
from microkit.errors import BadRequest, Unauthorized
from microkit.gateway import Gateway, Route
from microkit.gateway.auth_endpoint import AUTH_PATH, AuthEndpoint
from microkit.service import Service

pytestmark = pytest.mark.anyio


async def test_who_names_no_role_is_told_nothing() -> None:
    with pytest.raises(BadRequest):
        await AuthEndpoint(None).who({}, (), ())


async def test_without_a_verifier_only_what_is_open_is_open() -> None:
    endpoint = AuthEndpoint(None)
    assert (await endpoint.who({b"authorization": b"Bearer x"}, ("*",), ())).anonymous
    with pytest.raises(Unauthorized):
        await endpoint.who({b"authorization": b"Bearer x"}, ("+",), ())


@pytest.mark.parametrize(("enabled", "status"), [(True, 204), (False, 404)])
async def test_it_is_there_where_the_setting_says_so(enabled: bool, status: int) -> None:
    service = Service("gateway")
    service.mount("/", Gateway([Route("/bills", "billing")]), allow=ANYONE)
    instance = service.instance({"port": 0, "auth_endpoint": enabled, "services": {"billing": ["http://127.0.0.1:1"]}})
    async with instance, aiohttp.ClientSession() as client, client.get(f"{instance.url}{AUTH_PATH}?role=*") as reply:
        assert reply.status == status
