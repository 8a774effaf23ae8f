"""What a user writes, and what every type checker must see in it. Read by the checkers, never run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import assert_type
from uuid import UUID

from pydantic import BaseModel

from microkit import Contract, Event, Principal, Service, Transaction, get, post


class NewBill(BaseModel):
    amount: int


class Bill(NewBill):
    id: UUID


class BillPaid(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID


class Billing(Contract, service="billing", prefix="/bills", allow="member"):
    @post("", status=201)
    async def create(self, body: NewBill) -> Bill: ...

    @get("/{bill_id}", hedge=True, collapse=True)
    async def read(self, bill_id: UUID) -> Bill: ...


service = Service("billing")
billing = service.client(Billing)
assert_type(billing, Billing)


@service.handles(Billing.create)
async def create(body: NewBill, tx: Transaction, caller: Principal) -> Bill:
    bill = Bill(id=UUID(int=1), amount=body.amount)
    tx.publish(BillPaid(bill_id=bill.id))
    return bill


@service.on(BillPaid)
async def paid(event: BillPaid, tx: Transaction) -> None: ...


@service.get("/total", allow="member")
async def total(tx: Transaction) -> int:
    return 1


async def use() -> None:
    assert_type(await billing.read(UUID(int=1)), Bill)
    assert_type(await billing.create(body=NewBill(amount=1)), Bill)
    read: Callable[[UUID], Awaitable[Bill]] = billing.read
    assert_type(await read(UUID(int=1)), Bill)
    assert_type(await create(NewBill(amount=1), tx=await a_transaction(), caller=Principal("")), Bill)


async def a_transaction() -> Transaction:
    raise NotImplementedError
