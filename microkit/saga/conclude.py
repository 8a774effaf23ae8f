"""What a step that waits comes to: it begins to wait, waits on, has its event, or its time is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from microkit.context import current, working
from microkit.db import Transaction
from microkit.message import REPLY_TO, Event, Message
from microkit.saga.awaiting import ASK_AGAIN, Awaited, OnTimeout
from microkit.saga.progress import DONE, Ended, Outcome
from microkit.saga.state_use import parameters_of
from microkit.saga.step import StepContext
from microkit.saga.store import Held, Transition, record
from microkit.saga.waits import Address, begin, lock, look, time_out, told_by, wait_again
from microkit.saga.work import Work

TIMEOUT = "timeout"
"""The ``type`` of the failure of a saga that turns back since what it waited for has not come."""


async def conclude(tx: Transaction, work: Work, awaits: Awaited) -> tuple[Outcome, Any]:
    """The outcome of this attempt, and the state that it leaves, as JSON.

    Raises:
        Unfit: the state does not fit its model.
        ValueError: the state's field holds nothing that an event could be told by.
    """
    held, state = work.held, work.state()
    value = str(held.id) if awaits.by is None else told_by(getattr(state, awaits.by[1]))
    address = Address(held.name, work.place, value)
    await lock(tx, address)
    wait = await look(tx, held.id, address)
    work.may_have_happened |= wait is not None
    if wait is None:
        events = "|".join(event.event_type for event in awaits.events)
        wait = await begin(tx, held.id, address, step=held.step, events=events, within=awaits.timeout)
        _send(tx, work, awaits, state)
    if wait.message is not None:
        work.may_have_happened = True
        event = _event_of(awaits, wait.message)
        return DONE, held.state if awaits.then is None else await work.note(awaits.then, state, tx, event)
    if wait.left > 0:
        return Outcome(Ended.WAITING, f"waits for {named(awaits)}", again_after=wait.left), held.state
    return await _late(tx, work, awaits, state)


async def conclude_and_progress(tx: Transaction, work: Work, awaits: Awaited) -> tuple[Transition, Held | None]:
    """The same, and moves the saga on in the same transaction. Returns the saga as well, if it goes on at once.

    Raises:
        LeaseLost: it was lost; nothing may be committed.
    """
    outcome, state = await conclude(tx, work, awaits)
    transition = work.transition(outcome, state)
    return transition, await record(tx, transition)


def named(awaits: Awaited) -> str:
    return " or ".join(event.__name__ for event in awaits.events)


async def _late(tx: Transaction, work: Work, awaits: Awaited, state: BaseModel) -> tuple[Outcome, Any]:
    held = work.held
    reason = f"no {named(awaits)} came in {awaits.timeout:g} s"
    if awaits.on_timeout is ASK_AGAIN and work.attempt.number < work.retry.attempts:
        await wait_again(tx, held.id, work.place, within=awaits.timeout)
        _send(tx, work, awaits, state)
        return Outcome(Ended.TIMED_OUT, f"{reason}; asked again", TIMEOUT, again_after=awaits.timeout), held.state
    if awaits.on_timeout is ASK_AGAIN:  # a reply that comes while the saga is stuck is still its reply
        return Outcome(Ended.TIMED_OUT, reason, TIMEOUT, own=True), held.state
    await time_out(tx, held.id, work.place)
    if isinstance(awaits.on_timeout, OnTimeout):
        return Outcome(Ended.REFUSED, reason, TIMEOUT, own=True), held.state
    return DONE, await work.note(awaits.on_timeout, state, tx, None)


def _send(tx: Transaction, work: Work, awaits: Awaited, state: BaseModel) -> None:
    if awaits.command is None:
        return
    values = {"state": state, "step": work.step_context}
    taken = parameters_of(awaits.command, StepContext)
    command = awaits.command(*(values[each] for each in taken))
    with working(replace(current(), event_headers={REPLY_TO: work.key})):
        tx.publish(command)


def _event_of(awaits: Awaited, message: Message) -> Event:
    for event in awaits.events:
        if event.event_type == message.type:
            return event.from_message(message)
    raise LookupError(f"{message.type} came, which is not awaited any more")
