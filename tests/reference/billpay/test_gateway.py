"""Billpay's front door: one view of several services, and limits on what can be guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from microkit.testing.system import run_system
from reference.billpay.system import system

pytestmark = pytest.mark.anyio

ADA = {"email": "ada@billpay.example", "password": "quite another one 7"}


async def test_the_front_door_joins_and_limits(tmp_path: Path) -> None:
    settings: dict[str, dict[str, object]] = {"gateway": {"cors_origins": ["https://app.billpay.example"]}}
    async with run_system(system, tmp_path, settings=settings) as billpay, aiohttp.ClientSession() as session:
        url = billpay.urls["gateway"]

        async def ask(method: str, path: str, status: int, **options: Any) -> tuple[Any, Any]:
            async with session.request(method, url + path, **options) as response:
                assert response.status == status, await response.text()
                return await response.json(content_type=None), response.headers

        _, told = await ask("POST", "/api/users", 201, json={**ADA, "name": "Ada Nwosu"})
        assert told["RateLimit-Policy"].startswith('"guessing";q=60;w=60')
        tokens, _ = await ask("POST", "/api/sessions", 201, json=ADA)
        ada = {"Authorization": f"Bearer {tokens['access_token']}"}

        await ask("GET", "/api/dashboard", 401)
        page, _ = await ask("GET", "/api/dashboard", 200, headers=ada)
        assert page["user"]["name"] == "Ada Nwosu"
        assert (page["bills"]["items"], page["payments"]["items"], page["missing"]) == ([], [], [])

        document, _ = await ask("GET", "/openapi.json", 200)
        assert {"/api/dashboard", "/api/bills/{bill_id}", "/api/users/me"} <= document["paths"].keys()
        assert "Dashboard" in document["components"]["schemas"]

        page = {"Origin": "https://app.billpay.example", "Access-Control-Request-Method": "POST"}
        _, told = await ask("OPTIONS", "/api/payments", 204, headers=page)
        assert told["Access-Control-Allow-Origin"] == "https://app.billpay.example"

        await billpay["billing"].stop()
        page, _ = await ask("GET", "/api/dashboard", 200, headers=ada)
        assert (page["user"]["name"], page["bills"], page["missing"]) == ("Ada Nwosu", None, ["bills"])

        report, _ = await ask("GET", "/gateway.json", 200)
        assert report["routes"]["POST /api/sessions → user"]["statuses"] == {"2xx": 1}
        health, _ = await ask("GET", "/health", 200)
        assert (health["status"], health["parts"]["billing"]["status"]) == ("degraded", "down")

        statuses = []
        for _ in range(70):
            async with session.post(f"{url}/api/sessions", json={**ADA, "password": "guessed"}) as response:
                statuses.append(response.status)
                if response.headers.get("RateLimit", "").startswith('"guessing";r=0'):
                    break
        assert statuses[-1] == 429
