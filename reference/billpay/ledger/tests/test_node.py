"""The node on real databases: admission, ledgers, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import func, select
from stellar_sdk import Keypair

from microkit.db import Database
from microkit.db.failure import DatabaseUnavailable
from microkit.settings import load
from reference.billpay.ledger import domain, genesis
from reference.billpay.ledger.closing import Refused
from reference.billpay.ledger.codec import MalformedEnvelope
from reference.billpay.ledger.domain import TOTAL_COINS, TxCode
from reference.billpay.ledger.node import AlreadyFunded, Node, NotYetClosed
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.ledger.tables import AccountRow, LedgerRow, TransactionRow, WaitingRow

pytestmark = pytest.mark.anyio

Keys = Callable[[str], Keypair]
Pay = Callable[..., str]


async def account(database: Database, address: str) -> AccountRow:
    async with database.transaction(read_only=True) as tx:
        row = await tx.get(AccountRow, address)
    assert row is not None
    return row


async def all_money(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        balances = await tx.scalar(select(func.sum(AccountRow.balance)))
        head = (await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence.desc()).limit(1)))[0]
    return int(balances or 0) + head.fee_pool


async def test_a_payment_is_in_a_ledger_when_submit_returns(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    ann, bob = keys("ann").public_key, keys("bob").public_key
    await asyncio.gather(node.fund(ann), node.fund(bob))
    sequence = (await account(database, ann)).sequence + 1
    done = await node.submit(pay(keys("ann"), sequence, bob, "12.5", memo="INV-1"))
    assert (done.successful, done.code, done.memo) == (True, "tx_success", "INV-1")
    assert (await account(database, ann)).balance == 9_987_4999900
    assert (await account(database, bob)).balance == 10_012_5000000
    assert await all_money(database) == TOTAL_COINS


async def test_the_same_envelope_has_the_same_answer_and_one_effect(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    ann, bob = keys("ann").public_key, keys("bob").public_key
    await asyncio.gather(node.fund(ann), node.fund(bob))
    sequence = (await account(database, ann)).sequence + 1
    envelope = pay(keys("ann"), sequence, bob, "1")
    answers = await asyncio.gather(*(node.submit(envelope) for _ in range(20)))
    answers.append(await node.submit(envelope))
    assert {(row.hash, row.ledger, row.place) for row in answers} == {
        (answers[0].hash, answers[0].ledger, answers[0].place)
    }
    assert (await account(database, bob)).balance == 10_001_0000000


async def test_a_failed_transaction_keeps_its_answer_too(node: Node, database: Database, keys: Keys, pay: Pay) -> None:
    ann = keys("ann").public_key
    await node.fund(ann)
    row = await account(database, ann)
    envelope = pay(keys("ann"), row.sequence + 1, genesis.FRIENDBOT, "10000")
    first, second = await node.submit(envelope), await node.submit(envelope)
    assert first.codes == second.codes == ["op_underfunded"]
    after = await account(database, ann)
    assert (after.balance, after.sequence) == (row.balance - 100, row.sequence + 1)


async def test_what_is_refused_leaves_nothing_behind(node: Node, database: Database, keys: Keys, pay: Pay) -> None:
    await node.fund(keys("ann").public_key)
    row = await account(database, keys("ann").public_key)
    cases = {
        TxCode.BAD_SEQ: pay(keys("ann"), row.sequence, genesis.FRIENDBOT, "1"),
        TxCode.BAD_AUTH: pay(keys("ann"), row.sequence + 1, genesis.FRIENDBOT, "1", signers=(keys("eve"),)),
        TxCode.TOO_LATE: pay(keys("ann"), row.sequence + 1, genesis.FRIENDBOT, "1", bounds=(0, 1_000_000)),
        TxCode.NO_SOURCE_ACCOUNT: pay(keys("nobody"), 1, genesis.FRIENDBOT, "1"),
    }
    for code, envelope in cases.items():
        with pytest.raises(Refused) as refused:
            await node.submit(envelope)
        assert refused.value.outcome.code is code
    with pytest.raises(MalformedEnvelope):
        await node.submit("AAAA")
    async with database.transaction(read_only=True) as tx:
        assert await tx.scalar(select(func.count()).select_from(WaitingRow)) == 0
    assert (await account(database, keys("ann").public_key)).sequence == row.sequence


async def test_an_impatient_sender_is_told_so_and_the_ledger_takes_the_transaction_nevertheless(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    ann = keys("ann").public_key
    await node.fund(ann)
    await node.stop()  # from now on ledgers are closed by hand
    sequence = (await account(database, ann)).sequence + 1
    envelope = pay(keys("ann"), sequence, genesis.FRIENDBOT, "1")
    impatient = Node(database, _settings(submit_timeout=0.01))
    with pytest.raises(NotYetClosed):
        await impatient.submit(envelope)
    closed = await impatient.close_ledger()
    assert closed is not None
    assert len(closed.applied) == 1
    assert (await impatient.submit(envelope)).ledger == closed.ledger


async def test_what_waited_when_the_node_was_killed_is_in_a_ledger_after_its_restart(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    ann = keys("ann").public_key
    await node.fund(ann)
    await node.stop()
    sequence = (await account(database, ann)).sequence + 1
    envelope = pay(keys("ann"), sequence, genesis.FRIENDBOT, "1")
    killed = Node(database, _settings(submit_timeout=0.01))
    with pytest.raises(NotYetClosed):
        await killed.submit(envelope)
    restarted = Node(database, _settings())
    await restarted.start()
    try:
        assert (await restarted.submit(envelope)).successful
    finally:
        await restarted.stop()
    assert await all_money(database) == TOTAL_COINS


async def test_a_transaction_that_became_invalid_while_it_waited_is_dropped(
    node: Node, database: Database, keys: Keys, pay: Pay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = keys("ann").public_key
    await node.fund(ann)
    await node.stop()
    sequence = (await account(database, ann)).sequence + 1
    now = 4_000_000_000
    monkeypatch.setattr("reference.billpay.ledger.closing.time.time", lambda: now)
    waiting = asyncio.create_task(node.submit(pay(keys("ann"), sequence, genesis.FRIENDBOT, "1", bounds=(0, now))))
    while not await _waiting(database):
        await asyncio.sleep(0.01)
    now += 1
    closed = await node.close_ledger()
    assert closed is not None
    assert not closed.applied
    with pytest.raises(Refused) as refused:
        await waiting
    assert refused.value.outcome.code is TxCode.TOO_LATE
    assert (await account(database, ann)).sequence == sequence - 1
    assert not await _waiting(database)


async def test_ledgers_are_closed_while_nothing_happens(node: Node, database: Database) -> None:
    async def latest() -> LedgerRow:
        async with database.transaction(read_only=True) as tx:
            return (await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence.desc()).limit(1)))[0]

    while (await latest()).sequence < 4:
        await asyncio.sleep(0.02)
    assert (await latest()).fee_pool == 0


async def test_each_ledger_holds_the_hash_of_the_one_before(node: Node, database: Database, keys: Keys) -> None:
    await node.fund(keys("ann").public_key)
    await node.stop()
    async with database.transaction(read_only=True) as tx:
        rows = await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence))
    assert len(rows) > 1
    assert [row.previous_hash for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert [row.close_time for row in rows] == sorted(row.close_time for row in rows)


async def test_friendbot_opens_many_accounts_at_once_and_fills_up_the_poor(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    names = [keys(f"friend-{number}").public_key for number in range(30)]
    await asyncio.gather(*(node.fund(name) for name in names))
    assert {(await account(database, name)).balance for name in names} == {10_000 * domain.STROOPS_PER_XLM}
    with pytest.raises(AlreadyFunded):
        await node.fund(names[0])
    sequence = (await account(database, names[0])).sequence + 1
    await node.submit(pay(keys("friend-0"), sequence, names[1], "1"))
    await node.fund(names[0])
    assert (await account(database, names[0])).balance > 19_000 * domain.STROOPS_PER_XLM
    with pytest.raises(ValueError, match="public key"):
        await node.fund("nobody")
    assert await all_money(database) == TOTAL_COINS


async def test_money_is_conserved_while_many_pay_each_other(
    node: Node, database: Database, keys: Keys, pay: Pay
) -> None:
    names = [f"payer-{number}" for number in range(6)]
    await asyncio.gather(*(node.fund(keys(name).public_key) for name in names))

    async def spend(name: str) -> None:
        sequence = (await account(database, keys(name).public_key)).sequence
        for step in range(1, 6):
            other = keys(names[(names.index(name) + step) % len(names)]).public_key
            await node.submit(pay(keys(name), sequence + step, other, str(step * 1000)))

    await asyncio.gather(*(spend(name) for name in names))
    async with database.transaction(read_only=True) as tx:
        done = await tx.scalar(
            select(func.count()).select_from(TransactionRow).where(TransactionRow.source != genesis.FRIENDBOT)
        )
    assert done == 30
    assert await all_money(database) == TOTAL_COINS


async def _waiting(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        return int(await tx.scalar(select(func.count()).select_from(WaitingRow)) or 0)


def _settings(**changes: object) -> LedgerSettings:
    quick = {"close_interval": 0.02, "idle_interval": 0.1, "submit_timeout": 5.0}
    return load(LedgerSettings, "ledger", overrides={**quick, **changes})


async def test_a_database_that_is_away_is_one_line_a_try_without_a_stack(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(**_: object) -> None:
        raise DatabaseUnavailable("The database cannot be reached")

    monkeypatch.setattr(node, "close_ledger", away)
    async with asyncio.timeout(30):
        while not (said := [each for each in caplog.records if "was not closed" in each.getMessage()]):
            await asyncio.sleep(0.01)
    assert said[0].getMessage().endswith("The database cannot be reached")
    assert said[0].exc_info is None
