"""What billpay is killed in: each of its sagas, on the way forward and back, from the request to the last event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import func, select

from microkit import System
from microkit.context import WorkContext, working
from microkit.testing.crash import CrashScenario
from microkit.testing.issuer import dev_issuer
from microkit.testing.system import SystemUnderTest, as_user
from reference.billpay.billing.service import service as billing
from reference.billpay.billing.tables import BillRow, CouponRow
from reference.billpay.contracts.billing import Billing, NewBill
from reference.billpay.contracts.coupons import Coupons, NewCoupon
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.contracts.payment import NewPayment, NewRefund, Payments, RefundWallet, Wallets
from reference.billpay.ledger.domain import TOTAL_COINS
from reference.billpay.ledger.service import service as ledger
from reference.billpay.ledger.tables import AccountRow, LedgerRow
from reference.billpay.payment.service import service as payment
from reference.billpay.payment.tables import PaymentRow

PAYEE = next(iter(DEMO_PROVIDERS.values()))
COUPON = "WELCOME2026"
FEE = 100  # stroops
COIN = 10_000_000  # stroops


@dataclass(frozen=True)
class Arranged:
    """Before: a bill, a coupon, the payer's wallet and billpay's own, and all balances in stroops."""

    bill: UUID
    payer: str
    refunds: str
    balances: Mapping[str, int]
    payment: UUID | None = None


class BillpayCrash(CrashScenario[Arranged]):
    """Money is conserved, and the bill's state agrees with the ledger."""

    system = System("billpay", [dev_issuer(), payment, billing, ledger], issuer="dev-issuer")
    amount = Decimal(10)

    async def arrange(self, world: SystemUnderTest) -> Arranged:
        with as_user(world.token("root", "admin")):
            coupon = NewCoupon(code=COUPON, percent=50, expires_at=datetime(2099, 1, 1, tzinfo=UTC))
            await world.client(Coupons).create(coupon)
            refunds = await world.client(RefundWallet).open()
        with as_user(world.token("ann", "member")):
            payer = await world.client(Wallets).open()
            bill = await world.client(Billing).create(
                NewBill(
                    provider="Lagos Water",
                    reference="INV-1",
                    amount=self.amount,
                    payee=PAYEE,
                    due_at=datetime(2099, 1, 1, tzinfo=UTC),
                )
            )
        return Arranged(bill.id, payer.address, refunds.address, await balances(world))

    async def pay(self, world: SystemUnderTest, arranged: Arranged) -> UUID:
        with working(WorkContext(bearer=world.token("ann", "member"), idempotency_key="pay")):
            order = NewPayment(bill_id=arranged.bill, coupon=COUPON)
            return (await world.client(Payments).pay(order)).id

    async def agrees(
        self, world: SystemUnderTest, arranged: Arranged, *, moved: Mapping[str, int], bill: str, coupon: str, paid: str
    ) -> None:
        """``moved`` is by how much balances have changed, ``bill``, ``coupon`` and ``paid`` the states of the bill, the
        coupon and the payment."""
        now = await balances(world)
        assert {of: now[of] - before for of, before in arranged.balances.items() if now[of] != before} == moved
        assert await all_money(world) == TOTAL_COINS
        async with world["billing"].database.transaction(read_only=True) as tx:
            held = await tx.get(BillRow, arranged.bill)
            code = await tx.get(CouponRow, COUPON)
        async with world["payment"].database.transaction(read_only=True) as tx:
            payments = await tx.scalars(select(PaymentRow).where(PaymentRow.refund_of.is_(None)))
        assert [payment.status for payment in payments] == [paid], "paid once, and not twice"
        assert held is not None
        assert code is not None
        assert (held.status, code.status) == (bill, coupon)
        if bill == "settled":
            assert held.payment_id == payments[0].id


class PayingABill(BillpayCrash):
    """A bill with a coupon is paid."""

    async def act(self, world: SystemUnderTest, arranged: Arranged) -> None:
        await self.pay(world, arranged)

    async def invariant(self, world: SystemUnderTest, arranged: Arranged) -> None:
        due = int(self.amount * COIN) // 2
        moved = {arranged.payer: -due - FEE, PAYEE: due}
        await self.agrees(world, arranged, moved=moved, bill="settled", coupon="redeemed", paid="settled")


class PayingTooMuch(BillpayCrash):
    """A bill that the payer cannot afford is given back, and the coupon too."""

    amount = Decimal(1_000_000)

    async def act(self, world: SystemUnderTest, arranged: Arranged) -> None:
        await self.pay(world, arranged)

    async def invariant(self, world: SystemUnderTest, arranged: Arranged) -> None:
        await self.agrees(world, arranged, moved={}, bill="open", coupon="open", paid="failed")


class RefundingAPayment(BillpayCrash):
    """A settled payment is paid back."""

    async def arrange(self, world: SystemUnderTest) -> Arranged:
        before = await super().arrange(world)
        paid = await self.pay(world, before)
        with as_user(world.token("ann", "member")):
            while (await world.client(Payments).read(paid)).status != "settled":
                await asyncio.sleep(1)
        return Arranged(before.bill, before.payer, before.refunds, await balances(world), paid)

    async def act(self, world: SystemUnderTest, arranged: Arranged) -> None:
        assert arranged.payment is not None
        with working(WorkContext(bearer=world.token("root", "admin"), idempotency_key="refund")):
            await world.client(Payments).refund(arranged.payment, NewRefund(cause="The meter was read wrongly."))

    async def invariant(self, world: SystemUnderTest, arranged: Arranged) -> None:
        paid = int(self.amount * COIN) // 2
        moved = {arranged.payer: paid, arranged.refunds: -paid - FEE}
        await self.agrees(world, arranged, moved=moved, bill="refunded", coupon="open", paid="refunded")


SCENARIOS: Mapping[str, tuple[type[BillpayCrash], ...]] = {
    "pay-bill": (PayingABill, PayingTooMuch),
    "refund-payment": (RefundingAPayment,),
}
"""By the name of the saga."""


async def balances(world: SystemUnderTest) -> dict[str, int]:
    """Of all accounts, as the ledger's own database has them."""
    async with world["ledger"].database.transaction(read_only=True) as tx:
        return {row.address: row.balance for row in await tx.scalars(select(AccountRow))}


async def all_money(world: SystemUnderTest) -> int:
    """Every balance, and the fees that were taken."""
    async with world["ledger"].database.transaction(read_only=True) as tx:
        held = await tx.scalar(select(func.sum(AccountRow.balance)))
        fees = await tx.scalar(select(LedgerRow.fee_pool).order_by(LedgerRow.sequence.desc()).limit(1))
    return int(held or 0) + int(fees or 0)
