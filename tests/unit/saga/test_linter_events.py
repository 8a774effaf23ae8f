"""What a definition refuses of awaited events, groups, conditions, keys and rates: each sentence says what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from microkit.contract import Contract
from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.message import Event
from microkit.saga import (
    ASK_AGAIN,
    NO_EFFECT,
    Rate,
    Saga,
    await_event,
    compensatable,
    parallel,
    pivot,
    request,
    retriable,
)
from microkit.saga.step import Step


class Paid(Event, topic="bank.payments", key="payment"):
    payment: str


class Declined(Event, topic="bank.payments", key="payment"):
    payment: str


class Pay(Event, topic="bank.commands", key="payment"):
    payment: str


class Bank(Contract, service="bank"): ...


class Order(BaseModel):
    payment: str
    receipt: int | None = None
    late: str | None = None


async def note(state: Order, event: Paid | Declined) -> dict[str, int]:
    return {"receipt": 1}


async def note_paid(state: Order, event: Paid) -> None: ...
async def ask_bank(state: Order, event: Paid, bank: Bank) -> None: ...
async def undo(state: Order, tx: Transaction) -> None: ...
async def hold(state: Order, tx: Transaction) -> dict[str, int]:
    return {"receipt": 1}


async def hold_too(state: Order, tx: Transaction) -> dict[str, int]:
    return {"receipt": 2}


async def coroutine(state: Order) -> bool:
    return True


def pay(state: Order) -> Pay:
    return Pay(payment=state.payment)


async def pay_async(state: Order) -> Pay:
    return Pay(payment=state.payment)


PAID = await_event(Paid, by="payment", timeout=60)


def saga(*steps: Step, **limits: Any) -> Saga[Order]:
    return Saga("order", Order, steps, **limits)


def step(**more: Any) -> Step:
    return compensatable(hold, undo=undo, **more)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no time-out": (
        lambda: await_event(Paid, by="payment", timeout=float("nan")),
        "no number of seconds above 0: say how long",
    ),
    "a time-out of nothing": (
        lambda: request(pay, reply=Paid, timeout=0),
        "no number of seconds above 0: say how long",
    ),
    "no event": (lambda: await_event(Order, by="payment", timeout=1), "name the class of the event"),  # type: ignore[arg-type]  # what is refused
    "a field that the event lacks": (
        lambda: await_event(Paid, by="order", timeout=1),
        "Paid has no field 'order' to tell by which saga it is for; it has payment",
    ),
    "a reply without the field": (
        lambda: request(pay, reply=Paid, timeout=1, by="order"),
        "Paid has no field 'order' to tell by which saga it is for",
    ),
    "a field that the state lacks": (
        lambda: saga(compensatable(await_event(Paid, by=("payment", "reference"), timeout=1), undo=NO_EFFECT)),
        "Order has no field 'reference' to compare with: add it, or name the field that holds it",
    ),
    "a field that nobody leaves": (
        lambda: saga(compensatable(await_event(Paid, by=("payment", "late"), timeout=1), undo=NO_EFFECT)),
        "no step before leaves state.late: have one return",
    ),
    "several events alike": (
        lambda: await_event(Paid | Declined, by="payment", timeout=1),
        "treats them alike: give it then=, a function that takes the event",
    ),
    "an event that its function does not take": (
        lambda: saga(pivot(await_event(Paid | Declined, by="payment", timeout=1, then=note_paid))),
        "takes event: Paid and is also given Declined: write event: Paid | Declined",
    ),
    "a call when it has come": (
        lambda: pivot(await_event(Paid, by="payment", timeout=1, then=ask_bank)),
        "calls Bank when what it waited for has come: have it note what came, and make the call a step of its own",
    ),
    "nobody to ask again": (
        lambda: await_event(Paid, by="payment", timeout=1, on_timeout=ASK_AGAIN),
        "asks nobody, so that nobody can be asked again",
    ),
    "no way back after the pivot": (
        lambda: retriable(PAID),
        "turns back when its time is over: there is no way back from it; give on_timeout= a function",
    ),
    "a pivot by command that turns back": (
        lambda: pivot(request(pay, reply=Paid, timeout=1)),
        "though the command may still be carried out: give it on_timeout=ASK_AGAIN",
    ),
    "an event as compensation": (
        lambda: compensatable(hold, undo=PAID),
        "its compensation waits for an event that nobody was asked for; make it a request",
    ),
    "a compensation that turns back": (
        lambda: compensatable(hold, undo=request(pay, reply=Paid, timeout=1)),
        "and it is the way back: give it on_timeout=ASK_AGAIN or a function",
    ),
    "a command that is a coroutine": (
        lambda: compensatable(request(pay_async, reply=Paid, timeout=1), undo=NO_EFFECT),  # type: ignore[arg-type]  # what is refused
        "the command is made by a plain function of the state",
    ),
    "a step without a name": (
        lambda: compensatable(request(lambda state: Pay(payment="1"), reply=Paid, timeout=1), undo=NO_EFFECT),
        "written as lambda has no name: give it name=",
    ),
    "something awaited that is no step": (
        lambda: saga(PAID),  # type: ignore[arg-type]  # what is refused
        "is a step once it says what becomes of it: compensatable(await_Paid, undo=...), pivot(...) or retriable(...)",
    ),
    "a command that reads what is not there": (
        lambda: saga(
            compensatable(
                request(lambda state: Pay(payment=state.bill), reply=Paid, timeout=1), undo=NO_EFFECT, name="pay"
            )
        ),
        "its command reads state.bill, and Order has no such field",
    ),
    "a group of one": (lambda: parallel(step()), "a group has two steps or more; one alone stands in the saga itself"),
    "a group with the pivot": (
        lambda: parallel(step(), pivot(hold_too)),
        "holds the pivot 'hold_too': when it is done the others may still fail",
    ),
    "a group of both sides": (
        lambda: parallel(step(), retriable(hold_too)),
        "has compensatable and retriable branches: make two groups of it",
    ),
    "a group in a group": (
        lambda: parallel(parallel(step(), step(name="b")), step(name="c")),
        "holds another group: write the steps of both into one",
    ),
    "one field of two branches": (
        lambda: saga(parallel(step(), compensatable(hold_too, undo=undo))),
        "'hold' and 'hold_too' of one parallel group both leave 'receipt' when they are done: give each a",
    ),
    "a branch of a step's name": (
        lambda: saga(step(), parallel(step(), compensatable(hold_too, undo=undo))),
        "two steps of the name 'hold': tell them apart with name=",
    ),
    "a compensatable group after the pivot": (
        lambda: saga(pivot(hold), parallel(step(name="a"), step(name="b"))),
        "'a+b' is compensatable and follows a pivot step",
    ),
    "a condition that is a coroutine": (
        lambda: step(when=coroutine),
        "is a coroutine: a condition is a plain function",
    ),
    "a condition of nothing": (lambda: step(when=lambda: True), "its condition takes one parameter, the state"),
    "a condition on what is not there": (
        lambda: saga(step(when=lambda state: state.coupon is not None)),
        "its condition reads state.coupon, and Order has no such field; it has payment, receipt, late",
    ),
    "a key of a field that is not there": (
        lambda: saga(step(), key=lambda state: f"bill:{state.bill}"),
        "its key reads state.bill, and Order has no such field",
    ),
    "a key that is a coroutine": (lambda: saga(step(), key=coroutine), "key= is a plain function of the state"),
    "busy with nothing": (lambda: saga(step(), on_busy="refuse"), "and nothing that can be busy: give it key="),
    "busy somehow": (lambda: saga(step(), key=lambda state: "k", on_busy="hurry"), 'can "wait" or "refuse" to start'),
    "nobody at work": (lambda: saga(step(), concurrency=0), "at least one saga has to be at work"),
    "a rate of no key": (lambda: saga(step(), rate=Rate(1, each="key")), "has a rate for each key and no key"),
    "a rate of nothing": (lambda: Rate(0), "starts and seconds above 0, and a burst of at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_definition_that_cannot_work_is_refused_with_what_to_write(case: str) -> None:
    make, sentence = REFUSED[case]

    with pytest.raises(DefinitionError) as refused:
        make()
    assert sentence in str(refused.value)


def test_what_can_work_is_taken() -> None:
    found = saga(
        compensatable(
            request(pay, reply=Paid | Declined, then=note, timeout=1), undo=NO_EFFECT, when=lambda state: True
        ),
        compensatable(hold_too, undo=request(pay, reply=Paid, timeout=1, on_timeout=ASK_AGAIN)),
        pivot(await_event(Paid | Declined, by="payment", then=note, timeout=60), name="paid"),
        retriable(request(pay, reply=Paid, timeout=1, on_timeout=ASK_AGAIN), name="again"),
        key=lambda state: f"order:{state.payment}",
        rate=Rate(10, each="key"),
        concurrency=3,
    )

    assert [each.name for each in found.steps] == ["pay", "hold_too", "paid", "again"]


def test_an_older_definition_has_the_fingerprint_that_it_had() -> None:
    old = Saga("order", Order, [step(), pivot(hold_too)])

    assert old.fingerprint == "32bd09adc4d21661"
    group = parallel(step(name="a"), compensatable(undo, undo=NO_EFFECT, name="b"))
    assert saga(group).fingerprint != saga(step(name="a+b")).fingerprint
