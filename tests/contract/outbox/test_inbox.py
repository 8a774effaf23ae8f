"""The inbox: however often a message comes, its effect happens once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from microkit.db import Transaction
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Message
from microkit.outbox import effect_once, effects_once
from microkit.outbox.inbox import prune
from microkit.outbox.tables import inbox

pytestmark = pytest.mark.anyio

MESSAGE = Message("billing.bills", "1", b'{"amount":5}', {"ce_id": "7", "ce_source": "billing", "ce_type": "BillPaid"})

effects = sa.Table("effect", sa.MetaData(), sa.Column("number", sa.Integer))


@pytest.fixture
async def ledger(box: Any) -> Any:
    async with box.database.engine.begin() as connection:
        await connection.run_sync(effects.metadata.create_all)
    return box.database


async def credit(tx: Transaction) -> None:
    await tx.execute(sa.insert(effects).values(number=1))


async def rows(database: Any, table: sa.Table) -> int:
    async with database.transaction(read_only=True) as tx:
        found = await tx.scalar(sa.select(sa.func.count()).select_from(table))
    return int(found or 0)


async def test_a_hundred_copies_at_once_have_one_effect(ledger: Any) -> None:
    async def slowly(tx: Transaction) -> None:
        await credit(tx)
        await asyncio.sleep(0.02)

    done = await asyncio.gather(*(effect_once(ledger, "ledger", MESSAGE, slowly) for _ in range(100)))
    assert sorted(done) == [False] * 99 + [True]
    assert await rows(ledger, effects) == 1
    assert await rows(ledger, inbox) == 1


async def test_a_copy_waits_for_the_one_at_work_and_takes_its_place_when_that_fails(ledger: Any) -> None:
    inside = asyncio.Event()

    async def failing(tx: Transaction) -> None:
        await credit(tx)
        inside.set()
        await asyncio.sleep(0.1)
        raise ValueError("no")

    first = asyncio.create_task(effect_once(ledger, "ledger", MESSAGE, failing))
    await inside.wait()
    assert await effect_once(ledger, "ledger", MESSAGE, credit)
    with pytest.raises(ValueError, match="no"):
        await first
    assert await rows(ledger, effects) == 1


async def test_a_cancelled_effect_leaves_nothing_and_may_happen_later(ledger: Any) -> None:
    inside = asyncio.Event()

    async def hanging(tx: Transaction) -> None:
        await credit(tx)
        inside.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(effect_once(ledger, "ledger", MESSAGE, hanging))
    await inside.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await rows(ledger, effects) == await rows(ledger, inbox) == 0
    assert await effect_once(ledger, "ledger", MESSAGE, credit)


async def test_each_group_has_its_own_effect(ledger: Any) -> None:
    assert await effect_once(ledger, "ledger", MESSAGE, credit)
    assert await effect_once(ledger, "audit", MESSAGE, credit)
    assert not await effect_once(ledger, "audit", MESSAGE, credit)


async def test_the_same_id_of_another_source_is_another_message(ledger: Any) -> None:
    assert await effect_once(ledger, "ledger", MESSAGE, credit)
    other = replace(MESSAGE, headers={**MESSAGE.headers, "ce_source": "payment"}, value=b"other")
    assert await effect_once(ledger, "ledger", other, credit)


@pytest.mark.parametrize(
    "changed",
    [
        replace(MESSAGE, value=b'{"amount":500}'),
        replace(MESSAGE, headers={**MESSAGE.headers, "ce_type": "BillCancelled"}),
    ],
)
async def test_the_same_id_with_another_payload_is_refused(ledger: Any, changed: Message) -> None:
    assert await effect_once(ledger, "ledger", MESSAGE, credit)
    with pytest.raises(UndecodableMessage) as refused:
        await effect_once(ledger, "ledger", changed, credit)
    assert refused.value.reason == "id-reused"
    assert await rows(ledger, effects) == 1


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "no-id"),
        ({"ce_id": ""}, "no-id"),
        ({"ce_id": "x" * 256}, "bad-id"),
        ({"ce_id": "a\0b"}, "bad-id"),
        ({"ce_id": "\udcff"}, "bad-id"),
        ({"ce_id": "1", "ce_source": "a\nb"}, "bad-id"),
    ],
)
async def test_a_message_without_a_usable_id_is_refused(ledger: Any, headers: dict[str, str], reason: str) -> None:
    with pytest.raises(UndecodableMessage) as refused:
        await effect_once(ledger, "ledger", replace(MESSAGE, headers=headers), credit)
    assert refused.value.reason == reason
    assert await rows(ledger, effects) == 0


async def test_old_rows_are_pruned_in_portions_and_young_ones_stay(ledger: Any) -> None:
    for number in range(5):
        await effect_once(ledger, "ledger", replace(MESSAGE, headers={"ce_id": f"{number}"}), credit)
    assert await prune(ledger, older_than=3600.0) == 0
    assert await prune(ledger, older_than=-1.0, most=2) == 2
    assert await rows(ledger, inbox) == 3
    assert await prune(ledger, older_than=-1.0) == 3
    assert await prune(ledger, older_than=-1.0) == 0


def numbered(*numbers: int) -> list[Message]:
    return [replace(MESSAGE, headers={**MESSAGE.headers, "ce_id": str(number)}) for number in numbers]


async def credit_each(tx: Transaction, fresh: Sequence[Message]) -> None:
    for message in fresh:
        await tx.execute(sa.insert(effects).values(number=int(message.id)))


async def credited(database: Any) -> list[int]:
    async with database.transaction(read_only=True) as tx:
        return sorted(await tx.scalars(sa.select(effects.c.number)))


async def test_several_messages_have_their_effects_in_one_transaction_each_once(ledger: Any) -> None:
    assert await effect_once(ledger, "ledger", numbered(2)[0], credit)
    assert await effects_once(ledger, "ledger", numbered(5, 3, 2, 3, 4), credit_each) == 3
    assert await credited(ledger) == [1, 3, 4, 5]  # that of 2 was a 1
    assert await effects_once(ledger, "ledger", numbered(3, 4, 5), credit_each) == 0
    assert await effects_once(ledger, "audit", numbered(3), credit_each) == 1
    assert await rows(ledger, inbox) == 5


async def test_work_is_given_what_is_fresh_in_its_order(ledger: Any) -> None:
    seen: list[str] = []

    async def work(tx: Transaction, fresh: Sequence[Message]) -> None:
        seen.extend(message.id for message in fresh)

    await effects_once(ledger, "ledger", numbered(9, 1, 5, 1), work)
    assert seen == ["9", "1", "5"]


async def test_when_one_of_several_fails_none_has_an_effect_and_all_may_have_it_later(ledger: Any) -> None:
    async def failing(tx: Transaction, fresh: Sequence[Message]) -> None:
        await credit_each(tx, fresh)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await effects_once(ledger, "ledger", numbered(1, 2), failing)
    assert await rows(ledger, effects) == await rows(ledger, inbox) == 0
    assert await effects_once(ledger, "ledger", numbered(1, 2), credit_each) == 2


@pytest.mark.parametrize("before", [True, False])
async def test_among_several_the_id_of_another_message_is_refused(ledger: Any, before: bool) -> None:
    first, second = numbered(1, 2)
    other = replace(first, value=b"another")
    if before:
        await effect_once(ledger, "ledger", first, credit)
    with pytest.raises(UndecodableMessage) as refused:
        await effects_once(ledger, "ledger", [second, other] if before else [first, second, other], credit_each)
    assert refused.value.reason == "id-reused"
    assert await rows(ledger, effects) == before


async def test_overlapping_batches_at_once_have_each_effect_once(ledger: Any) -> None:
    async def batch(start: int) -> int:
        numbers = [*range(start, start + 20)]
        return await effects_once(ledger, "ledger", numbered(*reversed(numbers)), credit_each)

    done = await asyncio.gather(*(batch(start) for start in range(0, 50, 5)))
    assert sum(done) == 65
    assert await credited(ledger) == list(range(65))


async def test_a_rollback_by_hand_takes_nothing_of_the_others_with_it(ledger: Any) -> None:
    """It is what people write who have seen SQLAlchemy's sessions. In a shared transaction it would undo the effects of
    others, whose messages were then acknowledged."""

    async def one_rolls_back(tx: Transaction, fresh: Sequence[Message]) -> None:
        for message in fresh:
            await credit_each(tx, [message])
            if message.id == "2":
                await tx.session.rollback()

    with pytest.raises(DefinitionError, match="begin_nested"):
        await effects_once(ledger, "ledger", numbered(1, 2, 3), one_rolls_back)
    assert await rows(ledger, effects) == await rows(ledger, inbox) == 0

    async def rolls_back(tx: Transaction) -> None:
        await tx.session.rollback()
        await credit(tx)

    with pytest.raises(DefinitionError, match="begin_nested"):
        await effect_once(ledger, "ledger", MESSAGE, rolls_back)
    assert await rows(ledger, effects) == await rows(ledger, inbox) == 0


async def test_a_part_may_fail_in_a_savepoint_and_the_rest_stands(ledger: Any) -> None:
    async def work(tx: Transaction, fresh: Sequence[Message]) -> None:
        for message in fresh:
            with suppress(sa.exc.DBAPIError):
                async with tx.session.begin_nested():
                    await credit_each(tx, [message])
                    if message.id == "2":
                        await tx.execute(sa.text("INSERT INTO no_such_table VALUES (1)"))

    assert await effects_once(ledger, "ledger", numbered(1, 2, 3), work) == 3
    assert await credited(ledger) == [1, 3]


async def test_nobody_commits_a_shared_transaction_by_hand(ledger: Any) -> None:
    """It would commit the marks of messages that are still to be handled."""

    async def commits(tx: Transaction, fresh: Sequence[Message]) -> None:
        await credit_each(tx, fresh[:1])
        await tx.session.commit()

    with pytest.raises(DefinitionError, match="by hand"):
        await effects_once(ledger, "ledger", numbered(1, 2), commits)
    assert await rows(ledger, effects) == await rows(ledger, inbox) == 0
