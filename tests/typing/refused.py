"""What a user might get wrong. Every type checker must refuse the lines marked ``# refused``, and no other."""

from __future__ import annotations

from uuid import UUID

from accepted import Bill, Billing, BillPaid, NewBill
from pydantic import BaseModel

from microkit import Service, Transaction
from microkit.saga import Saga, pivot
from microkit.testing.scenario import answers, scenario, times_out

service = Service("billing")
billing = service.client(Billing)


async def calls() -> None:
    await billing.read("1")  # refused
    await billing.read()  # refused
    await billing.create(UUID(int=1))  # refused
    await billing.erase(UUID(int=1))  # refused
    wrong: str = await billing.read(UUID(int=1))  # refused
    assert wrong


@service.handles(Billing.create)  # refused
async def a_handler_with_another_result(body: NewBill, tx: Transaction) -> str:
    return "no bill"


@service.on(NewBill)  # refused
async def no_event(event: NewBill) -> None: ...


def not_async(tx: Transaction) -> None:
    tx.publish(NewBill(amount=1))  # refused
    tx.publish(BillPaid(bill_id=UUID(int=1)))


@service.handles(Billing.read)
async def fine(bill_id: UUID) -> Bill:
    return Bill(id=bill_id, amount=1)


class State(BaseModel):
    bill_id: UUID


async def look(state: State, billing: Billing) -> None: ...


looking = Saga("looking", State, [pivot(look, timeout=5)])
scenario(looking).given(Billing.read, answers("no bill"))  # refused
scenario(looking).when(NewBill(amount=1))  # refused
scenario(looking).given(Billing.read, answers(Bill(id=UUID(int=1), amount=1)), times_out())
