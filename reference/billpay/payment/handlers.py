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
from reference.billpay.contracts.payment import (
    NewPayment,
    NewRefund,
    NotSettled,
    Payment,
    PaymentStatus,
    Refund,
    RefundWalletMissing,
    Wallet,
    WalletMissing,
)
from reference.billpay.payment.domain import REFUNDS, AccountState, PayBill, RefundPayment
from reference.billpay.payment.horizon import Horizon
from reference.billpay.payment.keys import load_stellar
from reference.billpay.payment.refunds import refund_payment
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
        coupon=body.coupon,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
    )
    tx.add(row)
    state = PayBill(payment_id=row.id, bill_id=row.bill_id, owner=row.owner, coupon=row.coupon or "")
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


async def refund(payment_id: UUID, body: NewRefund, tx: Transaction) -> Refund:
    """One at a time: the payment's row is locked while it is decided whether there is a refund already."""
    payment = await tx.find(PaymentRow, PaymentRow.id == payment_id, PaymentRow.refund_of.is_(None), for_update=True)
    if payment is None:
        raise NotFound("There is no such payment")
    there = await tx.find(PaymentRow, PaymentRow.refund_of == payment_id, PaymentRow.status != PaymentStatus.FAILED)
    if there is not None:
        return _refund(there)
    wallet = await tx.get(WalletRow, payment.owner)
    if payment.status != PaymentStatus.SETTLED or payment.amount is None or wallet is None:
        raise NotSettled(f"The payment is {payment.status}. Nothing was paid back.")
    if await tx.get(WalletRow, REFUNDS) is None:
        raise RefundWalletMissing
    now = datetime.now(UTC)
    row = PaymentRow(
        id=uuid4(),
        owner=REFUNDS,
        bill_id=payment.bill_id,
        refund_of=payment.id,
        cause=body.cause,
        amount=payment.amount,
        status=PaymentStatus.PENDING,
        created_at=now,
        updated_at=now,
    )
    tx.add(row)
    state = RefundPayment(
        refund_id=row.id,
        payment_id=payment.id,
        bill_id=payment.bill_id,
        owner=payment.owner,
        amount=from_stroops(payment.amount),
        address=wallet.address,
        coupon=payment.coupon or "",
    )
    await refund_payment.start(tx, state, saga_id=row.id)
    return _refund(row)


async def read_refund(payment_id: UUID, tx: Transaction, caller: Principal) -> Refund:
    await read(payment_id, tx, caller)
    refunds = select(PaymentRow).where(PaymentRow.refund_of == payment_id).order_by(PaymentRow.created_at.desc())
    found = await tx.scalars(refunds.limit(1))
    if not found:
        raise NotFound("This payment is not paid back")
    return _refund(found[0])


async def open_wallet(database: Database, horizon: Horizon, vault: Vault, caller: Principal) -> Wallet:
    return await _open(caller.subject, database, horizon, vault)


async def open_refund_wallet(database: Database, horizon: Horizon, vault: Vault) -> Wallet:
    return await _open(REFUNDS, database, horizon, vault)


async def _open(owner: str, database: Database, horizon: Horizon, vault: Vault) -> Wallet:
    """No transaction is held while the network is asked; opening again goes on where the first time ended."""
    async with database.transaction(read_only=True) as tx:
        wallet = await tx.get(WalletRow, owner)
    if wallet is None:
        wallet = await _new_wallet(database, vault, owner)
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
    return await _read(caller.subject, "/payments/wallet", database, horizon)


async def read_refund_wallet(database: Database, horizon: Horizon) -> Wallet:
    return await _read(REFUNDS, "/payments/refund-wallet", database, horizon)


async def _read(owner: str, path: str, database: Database, horizon: Horizon) -> Wallet:
    async with database.transaction(read_only=True) as tx:
        wallet = await tx.get(WalletRow, owner)
    if wallet is None:
        raise NotFound(f"There is no wallet yet: POST {path} opens one")
    account = await horizon.account(wallet.address)
    return Wallet(address=wallet.address, balance=_balance(account))


def _balance(account: AccountState | None) -> str:
    return format(from_stroops(account.balance), "f") if account else "0"


def _payment(row: PaymentRow) -> Payment:
    return Payment(
        id=row.id,
        bill_id=row.bill_id,
        coupon=row.coupon,
        amount=None if row.amount is None else from_stroops(row.amount),
        status=PaymentStatus(row.status),
        reason=row.reason,
        transaction_hash=row.transaction_hash,
        ledger=row.ledger,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _refund(row: PaymentRow) -> Refund:
    if row.refund_of is None or row.amount is None:
        raise LookupError(f"payment {row.id} is no refund")
    return Refund(
        id=row.id,
        payment_id=row.refund_of,
        amount=from_stroops(row.amount),
        cause=row.cause or "",
        status=PaymentStatus(row.status),
        reason=row.reason,
        transaction_hash=row.transaction_hash,
        ledger=row.ledger,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
