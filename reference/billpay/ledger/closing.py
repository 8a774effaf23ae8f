"""Admission and closing as database transactions. Every function here is one unit of work, safe to run again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, func, select

from microkit.db import Transaction
from reference.billpay.ledger import domain, genesis
from reference.billpay.ledger.codec import Codec, Envelope
from reference.billpay.ledger.domain import Account, Closing, Outcome, Submission
from reference.billpay.ledger.tables import AccountRow, LedgerRow, TransactionRow, WaitingRow


class Refused(Exception):
    """The transaction is in no ledger and, as it stands, will be in none."""

    def __init__(self, outcome: Outcome, result_xdr: str) -> None:
        super().__init__(outcome.code)
        self.outcome = outcome
        self.result_xdr = result_xdr


@dataclass(frozen=True, slots=True)
class Closed:
    """A ledger that was closed: what got into it and what was dropped on the way, by transaction hash."""

    ledger: int
    applied: dict[str, TransactionRow]
    dropped: dict[str, Refused]


async def begin(tx: Transaction) -> None:
    """Writes the first ledger where there is none."""
    if await tx.get(LedgerRow, genesis.GENESIS_LEDGER) is not None:
        return
    accounts = [
        AccountRow(
            address=address,
            balance=balance,
            sequence=domain.first_sequence(genesis.GENESIS_LEDGER),
            last_modified_ledger=genesis.GENESIS_LEDGER,
        )
        for address, balance in genesis.balances().items()
    ]
    tx.add_all(accounts)
    tx.add(
        LedgerRow(
            sequence=genesis.GENESIS_LEDGER,
            hash=genesis.GENESIS_HASH,
            previous_hash="0" * 64,
            close_time=0,
            fee_pool=0,
            succeeded=0,
            failed=0,
            operations=0,
            operations_tried=0,
            header_xdr=genesis.GENESIS_HEADER,
        )
    )


async def take_turn(tx: Transaction) -> None:
    """Waits until nobody else changes the ledger. The first ledger's row is the lock: it is always there."""
    await tx.find(LedgerRow, LedgerRow.sequence == genesis.GENESIS_LEDGER, for_update=True)


async def latest(tx: Transaction) -> LedgerRow:
    """The last closed ledger."""
    return (await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence.desc()).limit(1)))[0]


async def ahead_of(tx: Transaction, source: str) -> int:
    """How many transactions of ``source`` wait."""
    waiting = select(func.count()).select_from(WaitingRow).where(WaitingRow.source == source)
    return int(await tx.scalar(waiting) or 0)


async def admit(tx: Transaction, codec: Codec, envelope: Envelope) -> TransactionRow | None:
    """Lets the transaction wait for the next ledger. Returns its row where it already is in a ledger.

    Raises:
        Refused: it is not valid. Nothing is charged.
    """
    submission = envelope.submission
    await take_turn(tx)
    done = await tx.get(TransactionRow, submission.hash)
    if done is not None:
        return done
    if await tx.find(WaitingRow, WaitingRow.hash == submission.hash) is not None:
        return None
    accounts = await _accounts(tx, [submission])
    ahead = await ahead_of(tx, submission.source)
    refused = domain.refusal(submission, accounts, int(time.time()), ahead)
    if refused is not None:
        raise Refused(refused, codec.result(refused, submission.operations))
    now = datetime.now(UTC)
    tx.add(WaitingRow(hash=submission.hash, source=submission.source, envelope_xdr=envelope.xdr, received_at=now))
    return None


async def _accounts(tx: Transaction, submissions: Iterable[Submission]) -> dict[str, Account]:
    names = set[str]().union(*(domain.names_of(submission) for submission in submissions))
    rows = await tx.scalars(select(AccountRow).where(AccountRow.address.in_(names)))
    return {row.address: Account(row.balance, row.sequence) for row in rows}


async def close(tx: Transaction, codec: Codec, *, even_empty: bool) -> Closed | None:
    """Closes a ledger over all that wait; ``None`` where none waits and an empty ledger is not wanted."""
    await take_turn(tx)
    waiting = await tx.scalars(select(WaitingRow).order_by(WaitingRow.number).limit(domain.MAX_TRANSACTIONS))
    if not waiting and not even_empty:
        return None
    previous = await latest(tx)
    number, at = previous.sequence + 1, max(int(time.time()), previous.close_time)
    envelopes = {row.hash: codec.decode(row.envelope_xdr) for row in waiting}
    submissions = [envelope.submission for envelope in envelopes.values()]
    accounts = await _accounts(tx, submissions)
    before = {address: Account(account.balance, account.sequence) for address, account in accounts.items()}
    closing = domain.close(accounts, submissions, ledger=number, at=at)
    applied = {}
    for place, (done, outcome) in enumerate(closing.applied, start=1):
        result = codec.result(outcome, done.operations)
        applied[done.hash] = _transaction_row(envelopes[done.hash], outcome, result, (number, place), at)
    tx.add(_ledger_row(codec, previous, closing, list(applied.values()), at))
    await tx.flush()  # before the transactions, which refer to it
    tx.add_all(list(applied.values()))
    await _write_accounts(tx, before, accounts, closing, number, at)
    if waiting:
        await tx.execute(delete(WaitingRow).where(WaitingRow.number.in_([row.number for row in waiting])))
    dropped = {gone.hash: Refused(outcome, codec.result(outcome, gone.operations)) for gone, outcome in closing.dropped}
    return Closed(number, applied, dropped)


async def _write_accounts(
    tx: Transaction, before: dict[str, Account], after: dict[str, Account], closing: Closing, ledger: int, at: int
) -> None:
    changed = {address for address, account in after.items() if before.get(address) != account}
    rows = {row.address: row for row in await tx.scalars(select(AccountRow).where(AccountRow.address.in_(changed)))}
    for address in changed:
        row = rows.get(address)
        if row is None:
            row = AccountRow(address=address)
            tx.add(row)
        row.balance, row.sequence = after[address].balance, after[address].sequence
        row.last_modified_ledger, row.last_modified_time = ledger, at
    for submission, _ in closing.applied:
        rows[submission.source].sequence_ledger, rows[submission.source].sequence_time = ledger, at


def _transaction_row(
    envelope: Envelope, outcome: Outcome, result_xdr: str, place: tuple[int, int], at: int
) -> TransactionRow:
    submission = envelope.submission
    return TransactionRow(
        hash=submission.hash,
        ledger=place[0],
        place=place[1],
        close_time=at,
        successful=outcome.successful,
        code=outcome.code.value,
        operation_codes=" ".join(outcome.operations),
        source=submission.source,
        source_sequence=submission.sequence,
        fee_charged=outcome.fee_charged,
        max_fee=submission.max_fee,
        envelope_xdr=envelope.xdr,
        result_xdr=result_xdr,
        memo_type=envelope.memo_type,
        memo=envelope.memo,
        signatures=" ".join(envelope.signatures),
        min_time=submission.min_time,
        max_time=submission.max_time,
    )


def _ledger_row(
    codec: Codec, previous: LedgerRow, closing: Closing, rows: Sequence[TransactionRow], at: int
) -> LedgerRow:
    fee_pool = previous.fee_pool + closing.fees
    header = codec.header(
        sequence=previous.sequence + 1,
        previous_hash=previous.hash,
        close_time=at,
        fee_pool=fee_pool,
        envelopes=[row.envelope_xdr for row in rows],
        results=[(row.hash, row.result_xdr) for row in rows],
    )
    good = [row for row in rows if row.successful]
    return LedgerRow(
        sequence=previous.sequence + 1,
        hash=header.hash,
        previous_hash=previous.hash,
        close_time=at,
        fee_pool=fee_pool,
        succeeded=len(good),
        failed=len(rows) - len(good),
        operations=sum(len(row.codes) for row in good),
        operations_tried=sum(len(row.codes) for row in rows),
        header_xdr=header.xdr,
    )
