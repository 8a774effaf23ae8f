"""The crash-point explorer finds what a crash breaks, and names where."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import Event, Service, System, Transaction
from microkit.context import WorkContext, working
from microkit.contract import ANYONE, SERVICE, Contract, post
from microkit.db import Database
from microkit.errors import MicrokitError
from microkit.saga import Saga, compensatable, pivot, retriable
from microkit.testing.crash import CrashScenario, explore
from microkit.testing.crash_process import explore_killing
from microkit.testing.system import SystemUnderTest

ORDER = UUID(int=7)


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[UUID] = mapped_column(primary_key=True)


class Parcel(Base):
    __tablename__ = "parcels"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    order_id: Mapped[UUID]


class OrderPlaced(Event, topic="shop.orders", key="order_id"):
    order_id: UUID


class Shop(Contract, service="shop", allow=ANYONE):
    @post("/orders/{order_id}", status=201)
    async def place(self, order_id: UUID) -> None: ...


async def place(order_id: UUID, tx: Transaction) -> None:
    tx.add(Order(id=order_id))
    tx.publish(OrderPlaced(order_id=order_id))


async def place_in_two(order_id: UUID, database: Database) -> None:
    """Wrong: what it publishes is not in the transaction of the order."""
    async with database.transaction() as tx:
        if await tx.get(Order, order_id) is not None:
            return
        tx.add(Order(id=order_id))
    async with database.transaction() as tx:
        tx.publish(OrderPlaced(order_id=order_id))


async def pack(event: OrderPlaced, tx: Transaction) -> None:
    tx.add(Parcel(order_id=event.order_id))


async def pack_without_inbox(event: OrderPlaced, database: Database) -> None:
    """Wrong: it has its effect as often as the event is delivered."""
    async with database.transaction() as tx:
        tx.add(Parcel(order_id=event.order_id))


class Placing(CrashScenario[None]):
    """An order is placed, and packed once."""

    def __init__(self) -> None:
        self.system = Service("shop", tables=Base.metadata)
        self.system.handles(Shop.place)(place)
        self.system.on(OrderPlaced, group="shop.pack")(pack)

    async def arrange(self, world: SystemUnderTest) -> None: ...

    async def act(self, world: SystemUnderTest, arranged: None) -> None:
        with working(WorkContext(idempotency_key="order-7")):
            await world.client(Shop).place(ORDER)

    async def invariant(self, world: SystemUnderTest, arranged: None) -> None:
        async with world["shop"].database.transaction(read_only=True) as tx:
            orders = await tx.scalar(sa.select(sa.func.count()).select_from(Order))
            parcels = await tx.scalar(sa.select(sa.func.count()).select_from(Parcel))
        assert (orders, parcels) == (1, 1)


class PlacingInTwo(Placing):
    def __init__(self) -> None:
        self.system = Service("shop", tables=Base.metadata)
        self.system.handles(Shop.place)(place_in_two)
        self.system.on(OrderPlaced, group="shop.pack")(pack)


class PackingTwice(Placing):
    def __init__(self) -> None:
        self.system = Service("shop", tables=Base.metadata)
        self.system.handles(Shop.place)(place)
        self.system.on(OrderPlaced, group="shop.pack")(pack_without_inbox)


POINTS = [
    "before commit of idempotency, orders, outbox by shop",
    "after commit of idempotency, orders, outbox by shop",
    "before publish of OrderPlaced by shop",
    "after publish of OrderPlaced by shop",
    "before commit of inbox, parcels by shop",
    "after commit of inbox, parcels by shop",
    "before ack of OrderPlaced by shop.pack",
    "after ack of OrderPlaced by shop.pack",
    "before commit of outbox by shop",
    "after commit of outbox by shop",
]


def test_every_commit_publish_and_acknowledgement_is_a_point_and_a_right_service_survives_each() -> None:
    found = explore(Placing)

    assert set(found.points) >= set(POINTS)
    assert set(found.killed) >= set(POINTS)


def test_a_broker_that_dies_with_the_process_loses_nothing_either() -> None:
    found = explore(Placing, broker="dies", every=4)

    assert found.killed
    assert not found.missed


def test_an_event_that_is_published_outside_its_transaction_is_found() -> None:
    with pytest.raises(AssertionError) as caught:
        explore(PlacingInTwo)

    told = str(caught.value)
    assert "killed after commit of orders by shop:" in told
    assert "MICROKIT_CRASH_POINT='after commit of orders by shop' pytest" in told
    assert "test_crash_points.py::test_an_event_that_is_published_outside_its_transaction_is_found" in told
    assert "(1, 0) == (1, 1)" in told


def test_an_effect_that_happens_at_each_delivery_is_found() -> None:
    with pytest.raises(AssertionError, match=r"killed after commit of parcels by shop:[^-]*\(1, \d\) == \(1, 1\)"):
        explore(PackingTwice)


def test_one_point_can_be_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert explore(Placing, only=POINTS[0]).killed == [POINTS[0]]

    monkeypatch.setenv("MICROKIT_CRASH_POINT", "after commit of orders by shop")
    with pytest.raises(AssertionError, match="killed at 1 points, and at 1 of them"):
        explore(PlacingInTwo)


def test_a_point_that_there_is_not_is_told_with_those_there_are() -> None:
    with pytest.raises(MicrokitError, match=r"no point is called 'before lunch'(.|\n)*before publish of OrderPlaced"):
        explore(Placing, only="before lunch")


class Charge(BaseModel):
    order_id: UUID


class Bank(Contract, service="bank", allow=SERVICE):
    @post("/charges")
    async def charge(self, body: Charge) -> None: ...


class Buy(BaseModel):
    order_id: UUID


async def reserve(state: Buy, tx: Transaction) -> None:
    tx.add(Order(id=state.order_id))


async def give_up(state: Buy, tx: Transaction) -> None: ...


async def charge(state: Buy, bank: Bank) -> None:
    await bank.charge(Charge(order_id=state.order_id))


async def deliver(state: Buy, tx: Transaction) -> None:
    tx.add(Parcel(order_id=state.order_id))


buy = Saga("buy", Buy, [compensatable(reserve, undo=give_up), pivot(charge, timeout=5), retriable(deliver)])


async def start(order_id: UUID, tx: Transaction) -> None:
    await buy.start(tx, Buy(order_id=order_id), saga_id=order_id)


class Ledger:
    """What another company's bank has on record: it does not die with us."""

    def __init__(self, *, careful: bool) -> None:
        self.careful = careful
        self.charges: list[UUID] = []

    def charge(self, order_id: UUID) -> None:
        if not (self.careful and order_id in self.charges):
            self.charges.append(order_id)


class Buying(CrashScenario[None]):
    """An order is charged once. The bank is a fake that stays."""

    careful = True

    def __init__(self) -> None:
        ledger = self.ledger = Ledger(careful=self.careful)
        shop, bank = Service("shop", tables=Base.metadata), Service("bank")
        shop.client(Bank)
        shop.saga(buy)
        shop.handles(Shop.place)(start)

        async def charged(body: Charge) -> None:
            ledger.charge(body.order_id)

        bank.handles(Bank.charge)(charged)
        self.system = System("buying", [shop, bank])

    async def arrange(self, world: SystemUnderTest) -> None: ...

    async def act(self, world: SystemUnderTest, arranged: None) -> None:
        with working(WorkContext(idempotency_key="order-7")):
            await world.client(Shop).place(ORDER)

    async def invariant(self, world: SystemUnderTest, arranged: None) -> None:
        assert len(self.ledger.charges) == 1
        async with world["shop"].database.transaction(read_only=True) as tx:
            assert len(await tx.scalars(sa.select(Parcel))) == 1


class BuyingFromACarelessBank(Buying):
    careful = False


def test_a_saga_whose_calls_are_idempotent_survives_every_point() -> None:
    found = explore(Buying)

    assert "before call of Bank.charge by shop" in found.killed
    assert "after call of Bank.charge by shop" in found.killed


def test_a_step_that_is_not_idempotent_is_found() -> None:
    with pytest.raises(AssertionError, match=r"killed after call of Bank\.charge by shop"):
        explore(BuyingFromACarelessBank)


def test_on_postgresql_too(postgres_cluster: object) -> None:
    found = explore(Placing, postgres=postgres_cluster, every=5)  # type: ignore[arg-type]  # a fixture of no type

    assert set(found.points) >= set(POINTS)
    assert found.killed


def test_with_real_processes_a_mistake_is_found() -> None:
    with pytest.raises(AssertionError, match=r"killed after commit of orders by shop:(.|\n)*in invariant"):
        explore_killing(PlacingInTwo, only="after commit of orders by shop")


def test_nothing_of_a_killed_life_goes_on() -> None:
    """Not even what stands in its ``finally`` blocks, before the next life has been looked at."""
    told: list[str] = []

    async def careful(order_id: UUID, tx: Transaction) -> None:
        told.append("begins")
        try:
            await place(order_id, tx)
            async with asyncio.timeout(60):
                await tx.flush()
        finally:
            told.append("ends")

    class Careful(Placing):
        def __init__(self) -> None:
            self.system = Service("shop", tables=Base.metadata)
            self.system.handles(Shop.place)(careful)

        async def invariant(self, world: SystemUnderTest, arranged: None) -> None:
            told.append("looked at")

    explore(Careful, only="before commit of idempotency, orders, outbox by shop")
    # Found, killed (the handler had ended before the commit), and done again by the client.
    assert told == ["begins", "ends", "looked at", "begins", "ends", "begins", "ends", "looked at"]
