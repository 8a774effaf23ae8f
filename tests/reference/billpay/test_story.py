"""The whole of billpay in one process: its story, its demo data, and what its gateway lets through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from microkit.console.api import api
from microkit.console.here import Here
from microkit.console.story import Silent, Story
from microkit.system import RunningSystem
from microkit.testing.system import run_system
from microkit.web import Server
from reference.billpay.seed import ADMIN, COUPON, PEOPLE, seed
from reference.billpay.story import story
from reference.billpay.system import system

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def billpay(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, database_urls: dict[str, dict[str, object]]
) -> AsyncIterator[RunningSystem]:
    """The whole system, which the tests of this file share, on SQLite and on PostgreSQL."""
    quick = {"ledger": {"close_interval": 0.1, **database_urls.get("ledger", {})}}
    async with run_system(system, tmp_path_factory.mktemp("story"), settings={**database_urls, **quick}) as running:
        yield running.running


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def log_in(client: aiohttp.ClientSession, gateway: str, email: str, password: str) -> dict[str, str]:
    async with client.post(f"{gateway}/api/sessions", json={"email": email, "password": password}) as response:
        assert response.status == 201
        return {"Authorization": f"Bearer {(await response.json())['access_token']}"}


async def get(client: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with client.get(url, headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def test_the_story_holds(billpay: RunningSystem) -> None:
    console = Server(api(Here(billpay)))
    await console.start()
    try:
        async with Story(billpay.urls, console.url, Silent()) as told:
            await story(told)
    finally:
        await console.stop(1)
    document = told.document()
    assert [check["sentence"] for check in document["checks"] if not check["ok"]] == []
    assert document["ok"] is True
    assert document["bill"]["status"] == "settled"
    assert document["balances"]["payee"]["moved"] == document["amount"]
    assert {"gateway", "payment", "billing", "ledger"} <= set(document["trace"]["services"])
    assert document["refused"]["payment"]["status"] == "failed"
    undone = [step["step"] for step in document["refused"]["saga"]["steps"] if step["direction"] == "undo"]
    assert undone == ["reserve_bill", "start_payment"], "there was no coupon to give back"


async def test_seeding_twice_does_no_harm_and_its_credentials_work(
    billpay: RunningSystem, client: aiohttp.ClientSession
) -> None:
    first = await seed(billpay)
    gateway = billpay.urls["gateway"]
    seen: list[Any] = []
    for _ in range(2):
        bills = {}
        for email, _name in PEOPLE:
            headers = await log_in(client, gateway, email, first[email])
            _, page = await get(client, f"{gateway}/api/bills?limit=100", headers)
            bills[email] = sorted((bill["reference"], bill["status"], bill["payment_id"]) for bill in page["items"])
        seen.append(bills)
        assert await seed(billpay) == first
    assert seen[0] == seen[1]
    assert all(len(bills) == 5 for bills in seen[0].values())
    paid = [status for bills in seen[0].values() for _, status, _ in bills if status == "settled"]
    assert len(paid) == 1
    _, coupon = await get(client, f"{gateway}/api/coupons/{COUPON}", headers)
    assert (coupon["percent"], coupon["status"]) == (10, "open")
    _, everybody = await get(client, f"{gateway}/api/users?limit=100", await log_in(client, gateway, *ADMIN))
    seeded = {ADMIN[0], *(email for email, _name in PEOPLE)}
    assert sorted(user["email"] for user in everybody["items"] if user["email"] in seeded) == sorted(seeded)


async def test_the_gateway_lets_nobody_in_without_a_token_but_to_register_and_log_in(
    billpay: RunningSystem, client: aiohttp.ClientSession
) -> None:
    gateway = billpay.urls["gateway"]
    for path in ("/api/bills", "/api/payments", "/api/payments/wallet", "/api/users/me", "/api/users"):
        status, problem = await get(client, gateway + path)
        assert (status, problem["type"]) == (401, "urn:problem:unauthorized"), path
    for path in ("/accounts/x", "/api/accounts/x", "/friendbot", "/.well-known/jwks.json", "/api"):
        assert (await get(client, gateway + path))[0] == 404, path


async def test_what_is_for_services_is_not_for_people(billpay: RunningSystem, client: aiohttp.ClientSession) -> None:
    gateway = billpay.urls["gateway"]
    credentials = await seed(billpay)
    email = next(iter(PEOPLE))[0]
    headers = await log_in(client, gateway, email, credentials[email])
    _, page = await get(client, f"{gateway}/api/bills", headers)
    bill = page["items"][0]
    body = {"payment_id": bill["id"], "owner": bill["owner"]}
    for verb in ("reserve", "settle", "release"):
        async with client.post(f"{gateway}/api/bills/{bill['id']}/{verb}", json=body, headers=headers) as response:
            assert response.status == 403, verb


async def test_one_document_describes_the_whole_api(billpay: RunningSystem, client: aiohttp.ClientSession) -> None:
    _, document = await get(client, f"{billpay.urls['gateway']}/openapi.json")
    paths = document["paths"]
    assert {"/api/users", "/api/sessions", "/api/bills", "/api/bills/{bill_id}", "/api/payments/wallet"} <= set(paths)
    assert "x-unavailable" not in document
    assert not any(path.startswith(("/accounts", "/health", "/.well-known")) for path in paths)
    assert "/api/bills/{bill_id}/cancel" in paths
    assert "/api/bills/{bill_id}/settle" not in paths, "only services may call it"
    assert {tag["name"] for tag in document["tags"]} == {"user", "payment", "billing"}
    references = {reference.rpartition("/")[2] for reference in _references(document)}
    assert references <= {name for kind in document["components"].values() for name in kind}


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return found.union(*(_references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(_references(value) for value in node))
    return set()
