"""What payment does when it is asked."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from microkit.auth import Principal
from microkit.db import Database, Transaction
from microkit.errors import NotFound
from microkit.page import Page, PageRequest
from reference.billpay.contracts.money import from_stroops
from reference.billpay.contracts.payment import NewPayment, Payment, PaymentStatus, Wallet, WalletMissing
from reference.billpay.payment.domain import AccountState, PayBill
from reference.billpay.payment.horizon import Horizon
from reference.billpay.payment.keys import load_stellar
from reference.billpay.payment.sagas import pay_bill
from reference.billpay.payment.tables import PaymentRow, WalletRow
from reference.billpay.payment.vault import Vault


async def pay(body: NewPayment, tx: Transaction, caller: Principal) -> Payment:
    if await tx.get(WalletRow, caller.subject) is None:
        raise WalletMissing
    now = datetime.now(UTC)
    row = PaymentRow(
        id=uuid4(),
        owner=caller.subject,
        bill_id=body.bill_id,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
    )
    tx.add(row)
    state = PayBill(payment_id=row.id, bill_id=row.bill_id, owner=row.owner)
    await pay_bill.start(tx, state, saga_id=row.id)
    return _payment(row)


async def list_payments(tx: Transaction, caller: Principal, page: PageRequest) -> Page[Payment]:
    payments = select(PaymentRow).where(PaymentRow.owner == caller.subject)
    rows, cursor = await tx.page(payments, page, by=(PaymentRow.created_at, PaymentRow.id), descending=True)
    return Page(items=[_payment(row) for row in rows], next_cursor=cursor)


async def read(payment_id: UUID, tx: Transaction, caller: Principal) -> Payment:
    row = await tx.find(PaymentRow, PaymentRow.id == payment_id, PaymentRow.owner == caller.subject)
    if row is None:
        raise NotFound("There is no such payment")
    return _payment(row)


async def open_wallet(database: Database, horizon: Horizon, vault: Vault, caller: Principal) -> Wallet:
    """No transaction is held while the network is asked; opening again goes on where the first time ended."""
    async with database.transaction(read_only=True) as tx:
        wallet = await tx.get(WalletRow, caller.subject)
    if wallet is None:
        wallet = await _new_wallet(database, vault, caller.subject)
    account = await horizon.account(wallet.address)
    if account is None and await horizon.fund(wallet.address):
        account = await horizon.account(wallet.address)
    return Wallet(address=wallet.address, balance=_balance(account))


async def _new_wallet(database: Database, vault: Vault, owner: str) -> WalletRow:
    key = (await load_stellar()).new_key()
    row = WalletRow(
        owner=owner,
        address=key.address,
        sealed_seed=vault.seal(key.seed, key.address),
        created_at=datetime.now(UTC),
    )

    async def keep(tx: Transaction) -> WalletRow:
        there = await tx.get(WalletRow, owner)
        if there is not None:
            return there
        tx.add(row)
        await tx.flush()
        return row

    try:
        return await database.run(keep)
    except IntegrityError:  # opened twice at once: the other one stays
        async with database.transaction(read_only=True) as tx:
            there = await tx.get(WalletRow, owner)
        if there is None:
            raise
        return there


async def read_wallet(database: Database, horizon: Horizon, caller: Principal) -> Wallet:
    async with database.transaction(read_only=True) as tx:
        wallet = await tx.get(WalletRow, caller.subject)
    if wallet is None:
        raise NotFound("You have no wallet yet: POST /payments/wallet opens one")
    account = await horizon.account(wallet.address)
    return Wallet(address=wallet.address, balance=_balance(account))


def _balance(account: AccountState | None) -> str:
    return format(from_stroops(account.balance), "f") if account else "0"


def _payment(row: PaymentRow) -> Payment:
    return Payment(
        id=row.id,
        bill_id=row.bill_id,
        amount=None if row.amount is None else from_stroops(row.amount),
        status=PaymentStatus(row.status),
        reason=row.reason,
        transaction_hash=row.transaction_hash,
        ledger=row.ledger,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
