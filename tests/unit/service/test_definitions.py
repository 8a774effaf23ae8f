"""What is written wrongly is refused while the module loads, in a sentence that says what to write instead."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal, NewType, ParamSpec, TypeVar
from uuid import UUID

import aiohttp
import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from microkit import ANYONE, Contract, DefinitionError, Event, Service, System, get

P = ParamSpec("P")
R = TypeVar("R")


class Bills(Contract, service="billing", prefix="/bills", allow=ANYONE):
    @get("")
    async def count(self) -> int: ...


class BillPaid(Event, topic="billing.bills", key="bill_id"):
    bill_id: UUID


class Base(DeclarativeBase): ...


async def count() -> int:
    return 0


async def counted_otherwise() -> int:
    return 1


def blocking() -> int:
    return 0


async def unannotated():  # type: ignore[no-untyped-def]
    yield object()


async def no_generator() -> AsyncIterator[object]:
    raise NotImplementedError


def event_twice(service: Service) -> None:
    for _ in range(2):

        @service.on(BillPaid)
        async def pay(event: BillPaid) -> None: ...


def handler_twice(service: Service) -> None:
    service.handles(Bills.count)(count)
    service.handles(Bills.count)(counted_otherwise)


def raising(problems: Any) -> None:
    class Broken(Contract, service="broken", allow=ANYONE):
        @get("", raises=problems)
        async def read(self) -> int: ...


def open_to(roles: Any) -> None:
    class Broken(Contract, service="broken", allow=roles):
        @get("")
        async def read(self) -> int: ...


BillId = NewType("BillId", UUID)


def keyed(kind: Any) -> None:
    class Broken(Event, topic="billing.broken", key="what"):
        what: kind


# What is written, and what the sentence says: where it stands, what it is, what to write instead.
WRONG: dict[str, tuple[Callable[[Any], object], tuple[str, ...]]] = {
    "an int as an event": (lambda s: s.on(int), ("@service.on", "the class int", "@service.on(BillPaid)")),
    "the base class as an event": (lambda s: s.on(Event), ("the class Event", "class BillPaid(Event")),
    "an instance as an event": (lambda s: s.on(BillPaid(bill_id=UUID(int=1))), ("@service.on(BillPaid)",)),
    "an event handled twice": (event_twice, ("billing.pay handles BillPaid twice", "another group")),
    "an event handler that blocks": (lambda s: s.on(BillPaid)(blocking), ("async def blocking", "to_thread")),
    "a number as an operation": (lambda s: s.handles(5), ("@service.handles", "not 5", "Billing.create")),
    "a function as an operation": (lambda s: s.handles(count), ("@service.handles", "Billing.create")),
    "an operation handled twice": (
        handler_twice,
        ("Bills.count", "count and counted_otherwise", "take @service.handles"),
    ),
    "a handler that blocks": (lambda s: s.handles(Bills.count)(blocking), ("Bills.count", "async def blocking")),
    "a lambda as a handler": (lambda s: s.handles(Bills.count)(lambda: 0), ("`async def handler(...)`",)),
    "a number as a handler": (lambda s: s.handles(Bills.count)(5), ("5 is no function", "async def")),
    "an inline route that blocks": (lambda s: s.get("/x", allow=ANYONE)(blocking), ("GET /x", "async def blocking")),
    "an inline route for nobody": (lambda s: s.get("/x", allow=())(count), ("GET /x", "who may call it")),
    "roles that are none": (lambda s: s.get("/x", allow=5)(count), ("allow=5", 'allow="member"')),
    "roles that are none in a contract": (lambda _: open_to([5]), ("Broken.read", "[5]", 'allow="member"')),
    "a number as a contract": (lambda s: s.client(int), ("service.client", "the class int", "client(Billing)")),
    "a number as a mounted app": (lambda s: s.mount("/x", 5, allow=ANYONE), ("'/x'", "not 5", "ASGI app or a Gateway")),
    "a mount without a slash": (lambda s: s.mount("x", count, allow=ANYONE), ("'x'", "begins with a slash")),
    "a saga that is none": (lambda s: s.saga(count), ("service.saga", 'Saga("pay"')),
    "a resource without a type": (lambda s: s.resource(unannotated), ("unannotated", "-> AsyncIterator[Thing]")),
    "a resource that yields nothing": (lambda s: s.resource(no_generator), ("no_generator", "yield the thing once")),
    "a number as a resource": (lambda s: s.resource(5), ("5 is no resource", "yield the thing once")),
    "an exception that is no problem": (lambda _: raising((ValueError,)), ("ValueError is none", "raises=(BillPaid,)")),
    "a problem outside of a tuple": (lambda _: raising(KeyError), ("Broken.read", "KeyError")),
    "a dict as an event's key": (lambda _: keyed(dict[str, int]), ("Broken", "'what' is a dict", "bill_id: UUID")),
    "a list as an event's key": (lambda _: keyed(list[str]), ("'what' is a list", "bill_id: UUID")),
    "a model as an event's key": (lambda _: keyed(BillPaid), ("'what' is a BillPaid", "bill_id: UUID")),
    "an event's key that may be absent": (lambda _: keyed(UUID | None), ("never absent", "bill_id: UUID")),
    "an event's key that rounds": (lambda _: keyed(float), ("'what' is a float", "bill_id: UUID")),
    "a negative port": (lambda _: Service("shop", port=-1), ("shop", "-1 is no port", "1 to 65535")),
    "an absurd port": (lambda _: Service("shop", port=70_000), ("70000 is no port", "port=8000")),
    "a text as a port": (lambda _: Service("shop", port="80"), ("'80' is no port",)),  # type: ignore[arg-type]
    "a base class as tables": (lambda _: Service("shop", tables=Base), ("the class Base", "tables=Base.metadata")),  # type: ignore[arg-type]
    "a text as migrations": (lambda _: Service("shop", migrations="m"), ("'m'", "Path(__file__).parent")),  # type: ignore[arg-type]
    "a model as settings": (lambda _: Service("shop", settings=BaseModel), ("shop", "ServiceSettings")),  # type: ignore[arg-type]
    "a number as a name": (lambda _: Service(5), ("5 cannot be a service's name", "bill-reminders")),  # type: ignore[arg-type]
    "a number in a system": (lambda _: System("shop", [5]), ("shop", "not 5", "services=[")),  # type: ignore[list-item]
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_written_wrongly_is_refused_with_what_to_write_instead(wrong: str) -> None:
    write, told = WRONG[wrong]

    with pytest.raises(DefinitionError) as refused:
        write(Service("billing"))

    assert [piece for piece in told if piece not in str(refused.value)] == [], str(refused.value)


@pytest.mark.anyio
async def test_a_handler_behind_a_decorator_is_taken_for_what_it_wraps() -> None:
    def counted(handler: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @functools.wraps(handler)
        def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
            return handler(*args, **kwargs)

        return call

    service = Service("billing")

    @service.handles(Bills.count)
    @counted
    async def wrapped() -> int:
        return 1

    async with (
        service.instance({"port": 0}) as instance,
        aiohttp.ClientSession() as session,
        session.get(f"{instance.url}/bills") as answer,
    ):
        assert await answer.json() == 1


@pytest.mark.parametrize(
    "kind", [str, int, UUID, date, Literal["a", "b"], StrEnum, Annotated[str, "x"], str | int, BillId]
)
def test_what_is_always_written_the_same_may_be_an_events_key(kind: Any) -> None:
    keyed(kind)
