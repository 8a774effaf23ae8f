"""Every operation of every service, tried by everybody who must not get through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from uuid import uuid4

import aiohttp
import pytest

from microkit.auth import Issuer, ServiceTokens
from microkit.contract import services_only
from tests.reference.billpay.access import ACCESS, ANYONE, BESIDE, forged, ways_into
from tests.reference.billpay.people import Billpay, Person

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Operation:
    service: str
    method: str
    path: str
    roles: frozenset[str]
    body: bool

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Matrix:
    billpay: Billpay
    session: aiohttp.ClientSession
    ids: dict[str, str]

    async def operations(self) -> list[Operation]:
        found = []
        for service in ACCESS:
            async with self.session.get(f"{self.billpay.system.urls[service]}/openapi.json") as answer:
                document = await answer.json()
            for path, methods in document["paths"].items():
                for method, operation in methods.items():
                    roles = frozenset(role for entry in operation.get("security", ()) for role in entry["bearer"])
                    name = method.upper()
                    found.append(Operation(service, name, path, roles, "requestBody" in operation))
        return found

    async def ask(self, operation: Operation, token: str | None) -> tuple[int, str]:
        """Status and body. The body that is sent fits nothing: who may not call must not learn that either."""
        path = operation.path.format(**self.ids)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.request(
            operation.method,
            self.billpay.system.urls[operation.service] + path,
            headers=headers,
            json={"no such": "field"} if operation.body else None,
        ) as answer:
            return answer.status, await answer.text()

    def issuer(self) -> Issuer:
        issuer = self.billpay.system["user"].parts.resources[Issuer]
        assert isinstance(issuer, Issuer)
        return issuer


@pytest.fixture
async def matrix(billpay: Billpay) -> AsyncIterator[Matrix]:
    alice = Person(billpay)
    await alice.open_wallet()
    bill = await alice.bill()
    payment = await alice.start_payment(bill)
    coupon = await billpay.coupon(owner=alice)
    ids = {"bill_id": str(bill.id), "payment_id": str(payment.id), "user_id": str(alice.id), "code": coupon}
    async with aiohttp.ClientSession() as session:
        yield Matrix(billpay, session, ids)


async def test_every_operation_is_for_whom_the_table_says(matrix: Matrix) -> None:
    described: dict[str, dict[str, str]] = {}
    for operation in await matrix.operations():
        described.setdefault(operation.service, {})[operation.name] = " ".join(operation.roles) or ANYONE

    assert described == ACCESS, "say in access.py that it is meant so"


async def test_there_is_no_other_way_into_a_service(matrix: Matrix) -> None:
    for service, operations in ACCESS.items():
        ways = ways_into(matrix.billpay.system[service])

        assert ways - BESIDE == set(operations), f"{service}: say in access.py who may come this way"


async def test_what_is_beside_the_operations_cares_for_no_token_and_takes_nothing(matrix: Matrix) -> None:
    expired = forged(matrix.issuer())["an expired one"]
    for service in ACCESS:
        for name in ways_into(matrix.billpay.system[service]) & BESIDE:
            operation = Operation(service, "GET", name.removeprefix("GET "), frozenset(), body=False)
            for token in (None, expired):
                status, body = await matrix.ask(operation, token)
                assert status == 200, f"{service} {name}: {status}"
                assert not [value for value in matrix.ids.values() if value in body], f"{service} {name}: {body}"
            status, _ = await matrix.ask(replace(operation, method="POST"), None)
            assert status == 405, f"{service} POST {operation.path}"


async def test_nobody_gets_in_without_a_token_or_with_an_expired_or_forged_one(matrix: Matrix) -> None:
    for operation in await matrix.operations():
        if not operation.roles:
            continue
        for kind, token in {"none": None, **forged(matrix.issuer())}.items():
            status, body = await matrix.ask(operation, token)
            assert status == 401, f"{operation.name} with {kind}: {status} {body}"
            assert '"type":"urn:problem:unauthorized"' in body, f"{operation.name} with {kind}: {body}"


async def test_another_role_does_not_get_in(matrix: Matrix) -> None:
    token = matrix.issuer().sign(str(uuid4()), roles=["auditor"]).value
    for operation in await matrix.operations():
        if operation.roles:
            status, body = await matrix.ask(operation, token)
            assert status == 403, f"{operation.name}: {status} {body}"


async def test_a_member_does_not_get_in_where_services_and_admins_do(matrix: Matrix) -> None:
    token = matrix.issuer().sign(str(uuid4()), roles=["member"]).value
    tried = 0
    for operation in await matrix.operations():
        if operation.roles and "member" not in operation.roles:
            status, body = await matrix.ask(operation, token)
            assert status == 403, f"{operation.name}: {status} {body}"
            tried += 1
    assert tried >= 14


async def test_a_service_does_not_get_in_where_members_do(matrix: Matrix) -> None:
    tokens = matrix.billpay.system["payment"].parts.tokens
    assert isinstance(tokens, ServiceTokens)
    for operation in await matrix.operations():
        if operation.roles and not services_only(tuple(operation.roles)):
            status, body = await matrix.ask(operation, tokens.token())
            assert status == 403, f"{operation.name}: {status} {body}"


async def test_one_service_does_not_get_in_where_another_does(matrix: Matrix) -> None:
    ledger = matrix.billpay.system["ledger"].parts.tokens
    assert isinstance(ledger, ServiceTokens)
    tried = 0
    for operation in await matrix.operations():
        if "service:payment" in operation.roles:
            status, body = await matrix.ask(operation, ledger.token())
            assert status == 403, f"{operation.name}: {status} {body}"
            tried += 1
    assert tried == 9


async def test_another_user_finds_nothing_of_what_is_not_theirs(matrix: Matrix) -> None:
    bob = matrix.issuer().sign(str(uuid4()), roles=["member"]).value
    by_id = 0
    for operation in await matrix.operations():
        if "member" not in operation.roles:
            continue
        status, body = await matrix.ask(operation, bob)
        if "{" in operation.path:
            assert status == 404, f"{operation.name}: {status} {body}"
            by_id += 1
        else:
            assert not [value for value in matrix.ids.values() if value in body], f"{operation.name}: {body}"
    assert by_id >= 6
