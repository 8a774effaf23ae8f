"""Every operation that the outside reaches, tried through the gateway by everybody who must not get through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from starlette.routing import Route

from microkit.admin import admin_app
from microkit.auth import Issuer, ServiceTokens
from microkit.gateway.filters import RateLimit
from microkit.testing.system import SystemUnderTest, run_system
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.system import system
from tests.reference.billpay.access import (
    ACCESS,
    ADMIN,
    ANYONE,
    AT_THE_GATEWAY,
    BESIDE,
    MEMBER,
    PAYMENT,
    by_gateway,
    forged,
    ways_into,
)

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("access by gateway")]


@dataclass
class Door:
    """The gateway, and things that belong to Amara."""

    running: SystemUnderTest
    session: aiohttp.ClientSession
    ids: dict[str, str]

    def token(self, *roles: str) -> str:
        """Of somebody who owns nothing yet."""
        return self.running.token(str(uuid4()), *roles)

    async def ask(self, name: str, token: str | None, body: Any = None) -> tuple[int, str]:
        """Status and body. Without a ``body`` one is sent that fits nothing."""
        method, _, path = name.partition(" ")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        sent = body if body is not None else None if method in {"GET", "DELETE"} else {"no such": "field"}
        url = self.running.urls["gateway"] + path.format(**self.ids)
        async with self.session.request(method, url, headers=headers, json=sent) as answer:
            return answer.status, await answer.text()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def door(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RateLimit, "around", lambda _filter, inner, _tools: inner)  # hundreds of requests are sent
        settings = {"ledger": {"close_interval": 0.1}}
        async with (
            run_system(system, tmp_path_factory.mktemp("door"), settings=settings) as running,
            aiohttp.ClientSession() as session,
        ):
            door = Door(running, session, {})
            door.ids = await _amaras_things(door)
            yield door


async def _amaras_things(door: Door) -> dict[str, str]:
    amara = str(uuid4())
    token, admin = door.running.token(amara, "member"), door.token("admin")
    assert (await door.ask("POST /api/payments/wallet", token))[0] == 201
    bill = {"provider": "Lagos Water", "reference": "INV-1", "amount": "12.5", "due_at": "2099-01-01T00:00:00Z"}
    made = await _made(door, "POST /api/bills", token, {**bill, "payee": DEMO_PROVIDERS["Lagos Water"]})
    payment = await _made(door, "POST /api/payments", token, {"bill_id": made["id"]})
    coupon = {"code": "AMARASOWN", "percent": 20, "owner": amara, "expires_at": "2099-01-01T00:00:00Z"}
    await _made(door, "POST /api/coupons", admin, coupon)
    return {"bill_id": made["id"], "payment_id": payment["id"], "code": "AMARASOWN", "user_id": amara}


async def _made(door: Door, name: str, token: str, body: dict[str, Any]) -> Any:
    method, _, path = name.partition(" ")
    async with door.session.request(
        method, door.running.urls["gateway"] + path, headers={"Authorization": f"Bearer {token}"}, json=body
    ) as answer:
        assert answer.status in {201, 202}, await answer.text()
        return await answer.json()


async def test_the_gateway_offers_what_the_table_says_and_nothing_else(door: Door) -> None:
    async with door.session.get(f"{door.running.urls['gateway']}/openapi.json") as answer:
        document = await answer.json()
    offered = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            roles = [" ".join(entry["bearer"]) or "signed in" for entry in operation.get("security", ())]
            offered[f"{method.upper()} {path}"] = " ".join(roles) or ANYONE

    assert offered == by_gateway(), "say in access.py that it is meant so"


async def test_there_is_no_other_way_into_the_gateway(door: Door) -> None:
    own = {"GET /api/dashboard"}
    assert own <= by_gateway().keys()
    assert ways_into(door.running["gateway"]) - own == AT_THE_GATEWAY, "say in access.py who may come"


async def test_the_admin_endpoints_of_a_service_are_behind_no_path(door: Door) -> None:
    app = admin_app(door.running["billing"], loopback=True)
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    assert {"/info", "/log-level", "/pool"} <= set(paths)
    anyone, admin = None, door.token(ADMIN)
    for path in paths:
        hidden = [f"/api{path}", f"/api/admin{path}", f"/billing{path}", f"/admin{path}"]
        for way in hidden if f"GET {path}" in BESIDE else [path, *hidden]:
            for method in ("GET", "PUT"):
                for token in (anyone, admin):
                    status, body = await door.ask(f"{method} {way}", token, {"level": "DEBUG"})
                    assert status in {400, 404}, f"{method} {way}: {status} {body}"


async def test_nobody_gets_through_without_a_token_or_with_an_expired_or_forged_one(door: Door) -> None:
    issuer = door.running["user"].parts.resources[Issuer]
    assert isinstance(issuer, Issuer)
    kinds: dict[str, str | None] = {"none": None, **forged(issuer)}
    for name, who in by_gateway().items():
        for kind, token in kinds.items() if who != ANYONE else ():
            status, body = await door.ask(name, token)
            assert status == 401, f"{name} with {kind}: {status} {body}"
            assert '"type":"urn:problem:unauthorized"' in body, f"{name} with {kind}: {body}"


async def test_another_role_does_not_get_through(door: Door) -> None:
    for name, who in by_gateway().items():
        for role in {"auditor", MEMBER, ADMIN} - {who} if who in {MEMBER, ADMIN} else ():
            status, body = await door.ask(name, door.token(role))
            assert status == 403, f"{name} as {role}: {status} {body}"


async def test_what_is_for_services_is_not_for_the_outside_not_even_with_a_services_token(door: Door) -> None:
    tokens = door.running["payment"].parts.tokens
    assert isinstance(tokens, ServiceTokens)
    tried = 0
    for name, who in ACCESS["billing"].items():
        if who == PAYMENT:
            method, _, path = name.partition(" ")
            for token in (door.token(MEMBER, ADMIN), tokens.token()):
                status, body = await door.ask(f"{method} /api{path}", token)
                assert status == 403, f"{name}: {status} {body}"
                tried += 1
    assert tried == 18


async def test_another_user_finds_nothing_of_what_is_amaras(door: Door) -> None:
    tunde = door.token(MEMBER)
    by_id = 0
    for name, who in by_gateway().items():
        if who != MEMBER:
            continue
        status, body = await door.ask(name, tunde)
        if "{" in name:
            assert status == 404, f"{name}: {status} {body}"
            by_id += 1
        else:
            assert not [value for value in door.ids.values() if value in body], f"{name}: {body}"
    assert by_id == 6
    stolen = {"bill_id": door.ids["bill_id"]}
    assert (await door.ask("POST /api/payments/wallet", tunde))[0] == 201
    status, body = await door.ask("POST /api/payments", tunde, stolen)
    assert status == 202, "it ends failed, and tells nothing of the bill"
    assert "12.5" not in body


async def test_what_may_be_written_is_said_and_nothing_else_is_taken(door: Door) -> None:
    token = door.token(MEMBER)
    bill = {"provider": "x", "reference": "y", "amount": "1", "due_at": "2099-01-01T00:00:00Z"}
    whole = {**bill, "payee": DEMO_PROVIDERS["Lagos Water"]}
    of_a_bill: list[dict[str, Any]] = [{"owner": door.ids["user_id"]}, {"status": "settled"}, {"is_admin": True}]
    of_a_user: list[dict[str, Any]] = [{"roles": ["admin"]}, {"email": "amara@billpay.example"}]
    tries = [("POST /api/bills", {**whole, **extra}) for extra in of_a_bill]
    tries += [("PATCH /api/users/me", {"name": "Tunde", **extra}) for extra in of_a_user]
    for name, body in tries:
        status, answer = await door.ask(name, token, body)
        assert status == 422, f"{name}: {answer}"
