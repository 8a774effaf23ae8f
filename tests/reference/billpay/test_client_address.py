"""Behind billpay's gateway each client's own attempts are counted, not the gateway's."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from microkit.testing.system import run_system
from reference.billpay.system import system

pytestmark = pytest.mark.anyio


async def test_up_trusts_its_gateway_about_clients_and_clients_about_nothing(
    tmp_path: Path, database_urls: dict[str, dict[str, object]]
) -> None:
    settings = {**database_urls, "user": {"address_attempts": 2, **database_urls.get("user", {})}}
    async with run_system(system, tmp_path, settings=settings) as billpay:
        assert billpay["user"].settings.trusted_proxies == ["127.0.0.1", "::1"]
        assert billpay["gateway"].settings.trusted_proxies == []

        async def guess(url: str, number: int, forwarded_for: str) -> int:
            body = {"email": f"user{number}@billpay.example", "password": "quite another one 7"}
            async with (
                aiohttp.ClientSession(headers={"X-Forwarded-For": forwarded_for}) as session,
                session.post(url, json=body) as response,
            ):
                return response.status

        through, behind = f"{billpay.urls['gateway']}/api/sessions", f"{billpay.urls['user']}/sessions"
        # What a client writes itself does not make it another at the gateway.
        assert [await guess(through, n, f"203.0.113.{n}") for n in range(3)] == [401, 401, 429]
        # The gateway, which is this machine, is believed: another client is another.
        assert [await guess(behind, n, "198.51.100.7") for n in range(10, 13)] == [401, 401, 429]
