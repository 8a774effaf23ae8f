"""The fate of an envelope, against a Horizon whose every answer is written here; on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy.exc import IntegrityError

from microkit.context import deadline_within
from microkit.db import Database
from microkit.errors import DeadlineExceeded, Unavailable
from reference.billpay.payment import submission
from reference.billpay.payment.domain import AccountState, Gone, Included, LedgerHead, Rejected
from reference.billpay.payment.horizon import Horizon, OutcomeUnknown
from reference.billpay.payment.submission import Submission
from reference.billpay.payment.tables import Base, EnvelopeRow, PaymentRow

pytestmark = pytest.mark.anyio

HASH = "ab" * 32
NOW = int(time.time())
APPLIED = Included(HASH, 50, successful=True)
FAILED = Included(HASH, 50, successful=False)
LOST = OutcomeUnknown("lost")


class Scripted(Horizon):
    """Answers submissions one after the other, and questions as it stands."""

    def __init__(self, *answers: Included | Rejected | Exception) -> None:
        self.answers = list(answers)
        self.submitted: list[str] = []
        self.found: Included | None = None
        self.closed_at = NOW
        self.sequence = 7
        self.after: Callable[[], None] = lambda: None

    async def submit(self, envelope: str) -> Included | Rejected:
        self.submitted.append(envelope)
        answer = self.answers.pop(0)
        self.after()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def head(self) -> LedgerHead:
        return LedgerHead(50, datetime.fromtimestamp(self.closed_at, UTC), 100, 5_000_000)

    async def account(self, address: str) -> AccountState:
        return AccountState(address, 10**9, self.sequence, 0, 50)

    async def transaction(self, name: str) -> Included | None:
        return self.found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(submission, "LONGEST_PAUSE", 0.001)


@pytest.fixture
async def envelope(anyio_backend: str, database: Database) -> EnvelopeRow:
    """Kept and never sent, with sequence number 8; ledgers until a minute from now may take it."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    now = datetime.now(UTC)
    payment = PaymentRow(id=uuid4(), owner="ann", bill_id=uuid4(), status="submitted", created_at=now, updated_at=now)
    row = EnvelopeRow(
        hash=HASH,
        payment_id=payment.id,
        address="GANN",
        sequence=8,
        max_time=NOW + 60,
        xdr="AAAA",
        state="open",
        attempts=0,
        created_at=now,
    )
    async with database.transaction() as tx:
        tx.add(payment)
        await tx.flush()
        tx.add(row)
    return row


async def fate(database: Database, horizon: Horizon, envelope: EnvelopeRow) -> Included | Rejected | Gone:
    return await Submission(database, horizon, lag=30).fate(envelope)


async def attempts(database: Database) -> int:
    async with database.transaction(read_only=True) as tx:
        row = await tx.get(EnvelopeRow, HASH)
    assert row is not None
    return row.attempts


async def test_what_a_ledger_took_is_applied(database: Database, envelope: EnvelopeRow) -> None:
    assert await fate(database, Scripted(APPLIED), envelope) == APPLIED
    assert await attempts(database) == 1


async def test_an_attempt_is_on_record_before_it_is_made(database: Database, envelope: EnvelopeRow) -> None:
    horizon = Scripted(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await fate(database, horizon, envelope)
    assert await attempts(database) == 1


async def test_the_identical_envelope_is_sent_until_there_is_an_answer(
    database: Database, envelope: EnvelopeRow
) -> None:
    horizon = Scripted(LOST, LOST, LOST, APPLIED)
    assert await fate(database, horizon, envelope) == APPLIED
    assert horizon.submitted == ["AAAA"] * 4
    assert await attempts(database) == 4


async def test_a_lost_answer_is_looked_up_by_hash(database: Database, envelope: EnvelopeRow) -> None:
    horizon = Scripted(LOST)
    horizon.found = APPLIED
    assert await fate(database, horizon, envelope) == APPLIED


@pytest.mark.parametrize("code", ["tx_bad_seq", "tx_too_late"])
async def test_a_refusal_about_the_moment_is_no_refusal_of_what_is_in_a_ledger(
    database: Database, envelope: EnvelopeRow, code: str
) -> None:
    horizon = Scripted(LOST, Rejected(code))
    horizon.sequence = 8
    horizon.after = lambda: setattr(horizon, "found", APPLIED if len(horizon.submitted) == 2 else None)
    assert await fate(database, horizon, envelope) == APPLIED


async def test_a_bad_sequence_number_alone_does_not_rule_an_envelope_out(
    database: Database, envelope: EnvelopeRow
) -> None:
    horizon = Scripted(Rejected("tx_bad_seq"), Rejected("tx_bad_seq"), Rejected("tx_bad_seq"))
    horizon.sequence = 8

    def history_catches_up() -> None:
        horizon.found = APPLIED if len(horizon.submitted) == 3 else None

    horizon.after = history_catches_up
    assert await fate(database, horizon, envelope) == APPLIED


async def test_it_is_gone_once_a_ledger_has_passed_its_time_bound_without_it(
    database: Database, envelope: EnvelopeRow
) -> None:
    horizon = Scripted(LOST, LOST, Rejected("tx_too_late"))

    def a_ledger_closes() -> None:
        horizon.closed_at = NOW + 30 * len(horizon.submitted)

    horizon.after = a_ledger_closes
    assert await fate(database, horizon, envelope) == Gone()
    assert len(horizon.submitted) == 3


async def test_the_first_clear_refusal_is_final(database: Database, envelope: EnvelopeRow) -> None:
    refusal = Rejected("tx_insufficient_balance")
    assert await fate(database, Scripted(refusal), envelope) == refusal


async def test_after_a_lost_submission_a_refusal_is_final_only_when_the_time_bound_has_passed(
    database: Database, envelope: EnvelopeRow
) -> None:
    refusal = Rejected("tx_insufficient_balance")
    horizon = Scripted(LOST, refusal, refusal, refusal)
    horizon.after = lambda: setattr(horizon, "closed_at", NOW + (61 if len(horizon.submitted) == 4 else 0))
    assert await fate(database, horizon, envelope) == refusal
    assert len(horizon.submitted) == 4


async def test_a_lost_submission_that_was_applied_outweighs_a_later_refusal(
    database: Database, envelope: EnvelopeRow
) -> None:
    horizon = Scripted(LOST, Rejected("tx_insufficient_balance"))
    horizon.after = lambda: setattr(horizon, "found", APPLIED if len(horizon.submitted) == 2 else None)
    assert await fate(database, horizon, envelope) == APPLIED


async def test_what_failed_in_a_ledger_names_the_ledger_that_took_the_fee(
    database: Database, envelope: EnvelopeRow
) -> None:
    horizon = Scripted(Rejected("tx_failed", ("op_underfunded",)))
    horizon.found = FAILED
    assert await fate(database, horizon, envelope) == Rejected("tx_failed", ("op_underfunded",), 50)
    lost = Scripted(LOST)
    lost.found = FAILED
    assert await fate(database, lost, envelope) == Rejected("tx_failed", (), 50)


async def test_it_ends_with_the_deadline_and_leaves_the_envelope_open(
    database: Database, envelope: EnvelopeRow
) -> None:
    always: Sequence[Exception] = [LOST] * 10_000
    with deadline_within(0.2), pytest.raises((DeadlineExceeded, Unavailable)):
        await fate(database, Scripted(*always), envelope)
    async with database.transaction(read_only=True) as tx:
        row = await tx.get(EnvelopeRow, HASH)
    assert row is not None
    assert row.state == "open"


async def test_the_database_refuses_a_second_envelope_of_the_wallet_or_the_payment(
    database: Database, envelope: EnvelopeRow
) -> None:

    def another(**changes: object) -> EnvelopeRow:
        values = {
            "hash": "cd" * 32,
            "payment_id": envelope.payment_id,
            "address": "GBOB",
            "sequence": 9,
            "max_time": NOW,
            "xdr": "BBBB",
            "state": "open",
            "attempts": 0,
            "created_at": datetime.now(UTC),
        }
        return EnvelopeRow(**{**values, **changes})

    async def keep(row: EnvelopeRow) -> None:
        async with database.transaction() as tx:
            tx.add(row)

    with pytest.raises(IntegrityError):
        await keep(another())
    other = PaymentRow(
        id=uuid4(),
        owner="ann",
        bill_id=uuid4(),
        status="pending",
        created_at=datetime.now(UTC),
        updated_at=datetime.now(UTC),
    )
    async with database.transaction() as tx:
        tx.add(other)
    with pytest.raises(IntegrityError):
        await keep(another(address="GANN", payment_id=other.id))
    await keep(another(state="expired"))
