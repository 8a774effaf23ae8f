"""People who pay bills, and a way to Horizon that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TypeVar
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web
from sqlalchemy import func, select
from stellar_sdk import Keypair

from microkit.auth import Issuer
from microkit.context import WorkContext, working
from microkit.contract import Contract
from microkit.errors import Problem, RemoteProblem
from microkit.testing.system import SystemUnderTest, as_user
from reference.billpay.billing.tables import CouponRow
from reference.billpay.contracts.billing import Bill, Billing, BillStatus, NewBill
from reference.billpay.contracts.coupons import Coupon, Coupons, NewCoupon
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.contracts.payment import NewPayment, Payment, Payments, PaymentStatus, Wallet, Wallets
from reference.billpay.ledger.tables import AccountRow, LedgerRow

C = TypeVar("C", bound=Contract)
T = TypeVar("T")

PROVIDER = DEMO_PROVIDERS["Lagos Water"]
FINAL = (PaymentStatus.SETTLED, PaymentStatus.FAILED)


class WayToHorizon:
    """Passes requests on to the ledger. ``requests`` and ``answers`` say which submissions get lost, by number from 1.

    ``submitted`` holds each envelope that was sent, lost or not.
    """

    def __init__(self) -> None:
        self.target = ""
        self.url = ""
        self.clear()

    def clear(self) -> None:
        """Loses nothing from now on, and forgets what went before."""
        self.submitted: list[str] = []
        self.lose_request: Callable[[int], bool] = lambda _: False
        self.lose_answer: Callable[[int], bool] = lambda _: False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[WayToHorizon]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            yield self
            await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        number = 0
        if request.method == "POST":
            self.submitted.append(body.decode())
            number = len(self.submitted)
            if self.lose_request(number):
                return web.json_response({"title": "Timeout", "status": 504}, status=504)
        headers = {name: request.headers[name] for name in ("Host", "Content-Type") if name in request.headers}
        async with self._session.request(
            request.method, self.target + request.path_qs, data=body, headers=headers
        ) as answer:
            content = await answer.read()
        if number and self.lose_answer(number):
            assert request.transport is not None
            request.transport.abort()
        kept = {name: answer.headers[name] for name in ("Content-Type", "Latest-Ledger") if name in answer.headers}
        return web.Response(body=content, status=answer.status, headers=kept)


async def as_told(token: str, ask: Callable[[], Awaitable[T]]) -> T:
    """What is answered. Who is told to come again does, with the same request: four services in one process, on a
    machine that does much else, may have more to do than they can."""
    context = WorkContext(bearer=token, idempotency_key=str(uuid4()))
    async with asyncio.timeout(120):
        while True:
            try:
                with working(context):
                    return await ask()
            except (Problem, RemoteProblem) as refused:
                if refused.status not in (503, 504):
                    raise
            await asyncio.sleep(1.0)


@dataclass
class Person:
    """Somebody with a token and, once opened, a wallet."""

    billpay: Billpay
    id: UUID = field(default_factory=uuid4)
    wallet: Wallet | None = None

    @property
    def token(self) -> str:
        issuer = self.billpay.system["user"].parts.resources[Issuer]
        assert isinstance(issuer, Issuer)
        return issuer.sign(str(self.id), roles=["member"]).value

    async def open_wallet(self) -> Wallet:
        self.wallet = await self._as_told(lambda: self.billpay.client(Wallets).open())
        return self.wallet

    async def bill(self, amount: str = "12.5", *, payee: str = PROVIDER, due_in: timedelta = timedelta(days=3)) -> Bill:
        new = NewBill(
            provider="Lagos Water",
            reference="INV-2026-0117",
            amount=Decimal(amount),
            payee=payee,
            due_at=datetime.now(UTC) + due_in,
        )
        return await self._as_told(lambda: self.billpay.client(Billing).create(new))

    async def read_bill(self, bill: Bill) -> Bill:
        with as_user(self.token):
            return await self.billpay.client(Billing).read(bill.id)

    async def start_payment(self, bill: Bill, *, coupon: str | None = None) -> Payment:
        new = NewPayment(bill_id=bill.id, coupon=coupon)
        return await self._as_told(lambda: self.billpay.client(Payments).pay(new))

    async def end_of(self, payment: Payment) -> Payment:
        """The payment when it has come to its end, and its bill is no longer reserved for it."""
        pause = 0.05
        async with asyncio.timeout(180):
            while True:
                found = await self._as_told(lambda: self.billpay.client(Payments).read(payment.id))
                if found.status in FINAL:
                    return found
                await asyncio.sleep(pause)
                pause = min(1.0, 1.5 * pause)  # fifty who ask all the time are work, too

    async def _as_told(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await as_told(self.token, ask)

    async def pay(self, bill: Bill, *, coupon: str | None = None) -> Payment:
        return await self.end_of(await self.start_payment(bill, coupon=coupon))


@dataclass
class Billpay:
    """The running system as a test sees it."""

    system: SystemUnderTest
    way: WayToHorizon

    def client(self, contract: type[C]) -> C:
        return self.system.client(contract)

    async def person(self) -> Person:
        """Somebody with 10,000 XLM in a wallet."""
        person = Person(self)
        await person.open_wallet()
        return person

    @property
    def admin(self) -> str:
        """An administrator's access token."""
        return self.system.token(str(uuid4()), "admin")

    async def coupon(
        self, percent: int = 20, *, owner: Person | None = None, valid_for: timedelta = timedelta(days=3)
    ) -> str:
        """A new coupon's code."""
        new = NewCoupon(
            code=f"C{uuid4().hex[:12].upper()}",
            percent=percent,
            owner=str(owner.id) if owner else None,
            expires_at=datetime.now(UTC) + valid_for,
        )
        with as_user(self.admin):
            return (await self.client(Coupons).create(new)).code

    async def read_coupon(self, code: str) -> Coupon:
        """As billing's books have it."""
        async with self.system["billing"].database.transaction(read_only=True) as tx:
            row = await tx.get(CouponRow, code)
        assert row is not None
        return Coupon.model_validate(row, from_attributes=True)

    async def new_account(self) -> str:
        """An account of a provider that nobody else pays."""
        address = Keypair.random().public_key
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.system.urls['ledger']}/friendbot", params={"addr": address}) as answer,
        ):
            assert answer.status == 200
        return address

    async def balance(self, address: str) -> int:
        """In stroops, as the ledger has it."""
        async with self.system["ledger"].database.transaction(read_only=True) as tx:
            row = await tx.get(AccountRow, address)
        return row.balance if row else 0

    async def all_money(self) -> int:
        async with self.system["ledger"].database.transaction(read_only=True) as tx:
            balances = await tx.scalar(select(func.sum(AccountRow.balance)))
            head = (await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence.desc()).limit(1)))[0]
        return int(balances or 0) + head.fee_pool

    async def status_of(self, person: Person, bill: Bill, status: BillStatus) -> Bill:
        """The bill, once it has this status."""
        async with asyncio.timeout(120):
            while True:
                found = await person.read_bill(bill)
                if found.status is status:
                    return found
                await asyncio.sleep(0.02)
