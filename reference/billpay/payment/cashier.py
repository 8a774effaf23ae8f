"""The cashier: makes a payment from a wallet, once, whatever happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from microkit.db import Database, Transaction
from microkit.saga import StepNotYet, StepRefused
from reference.billpay.contracts.payment import PaymentStatus
from reference.billpay.payment import domain
from reference.billpay.payment.domain import EnvelopeState, Gone, Included, Order, Rejected, Signed
from reference.billpay.payment.horizon import Horizon
from reference.billpay.payment.keys import load_stellar
from reference.billpay.payment.submission import Submission
from reference.billpay.payment.tables import EnvelopeRow, PaymentRow, WalletRow
from reference.billpay.payment.vault import Vault

LANE_LENGTH: Final = 4
"""How many payments wait for a wallet's turn here. More come back later, so that one wallet with many payments does not
keep everybody else's sagas from running."""


PAUSE: Final = 2.0
"""Seconds until a payment comes back. By then a few of those in the lane have been made, and it never runs dry."""


class WalletBusy(StepNotYet):
    """Other payments from this wallet are under way; it is no failure, and this one comes back."""

    def __init__(self, address: str) -> None:
        super().__init__(f"other payments from wallet {address} are under way", after=PAUSE)


@dataclass(frozen=True, slots=True)
class Network:
    """How envelopes are made. ``window`` is how many seconds of ledgers may take one; ``max_fee`` is in stroops for an
    operation; ``lag`` is at ``domain.ruled_out``."""

    passphrase: str
    window: float
    max_fee: int
    lag: float


@dataclass(slots=True)
class _Lane:
    """Who waits for a wallet's turn."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Cashier:
    """Pays from wallets, one transaction of a wallet at a time."""

    def __init__(self, database: Database, horizon: Horizon, vault: Vault, network: Network) -> None:
        self._database = database
        self._horizon = horizon
        self._vault = vault
        self._network = network
        self._submission = Submission(database, horizon, lag=network.lag)
        self._lanes: dict[str, _Lane] = {}

    async def pay(self, order: Order) -> Included:
        """Makes the payment and returns the ledger it is in. Called again for the same payment it goes on with it.

        Raises:
            StepRefused: it is not made, and nothing but perhaps a fee was taken; the reason is for the payer.
            Unavailable, DeadlineExceeded, WalletBusy: not decided yet; call again.
        """
        wallet = await self._wallet(order)
        async with self._lane(wallet.address):
            while True:
                envelope = await self._kept(order.payment_id) or await self._signed(order, wallet)
                if envelope.state == EnvelopeState.APPLIED:
                    return Included(envelope.hash, envelope.ledger or 0, successful=True)
                fate = await self._submission.fate(envelope)
                await self._note(envelope.hash, fate)
                match fate:
                    case Included():
                        return fate
                    case Rejected():
                        because = domain.reason(fate.code, fate.operations, fee_was_taken=fate.ledger is not None)
                        raise StepRefused(because, type=fate.code)
                    case Gone():
                        continue  # a new envelope

    async def _note(self, name: str, fate: Included | Rejected | Gone) -> None:
        await self._database.run(lambda tx: _decide(tx, name, fate))

    async def _wallet(self, order: Order) -> WalletRow:
        """The wallet that pays. The amount is noted with the payment, to be seen while it is under way."""

        async def note(tx: Transaction) -> WalletRow | None:
            payment = await tx.get(PaymentRow, order.payment_id)
            if payment is not None and payment.amount != order.amount:
                payment.amount = order.amount
            return await tx.get(WalletRow, order.owner)

        wallet = await self._database.run(note)
        if wallet is None:
            raise StepRefused("You have no wallet. Open one first.")
        return wallet

    @asynccontextmanager
    async def _lane(self, address: str) -> AsyncIterator[None]:
        """One at a time for each wallet, in the order they came; across processes the database sees to it."""
        lane = self._lanes.setdefault(address, _Lane())
        if lane.users >= LANE_LENGTH:
            raise WalletBusy(address)
        lane.users += 1
        try:
            async with lane.lock:
                yield
        finally:
            lane.users -= 1
            if not lane.users:
                del self._lanes[address]

    async def _kept(self, payment_id: UUID) -> EnvelopeRow | None:
        """The payment's envelope that is under way or was applied."""
        states = (EnvelopeState.OPEN, EnvelopeState.APPLIED)
        async with self._database.transaction(read_only=True) as tx:
            return await tx.find(EnvelopeRow, EnvelopeRow.payment_id == payment_id, EnvelopeRow.state.in_(states))

    async def _signed(self, order: Order, wallet: WalletRow) -> EnvelopeRow:
        """A new envelope, kept before anybody sees it."""
        async with self._database.transaction(read_only=True) as tx:
            under_way = EnvelopeRow.state == EnvelopeState.OPEN
            if await tx.find(EnvelopeRow, EnvelopeRow.address == wallet.address, under_way) is not None:
                raise WalletBusy(wallet.address)
        await self._horizon.root()  # refuses another network's Horizon
        head, account = await self._horizon.head(), await self._horizon.account(wallet.address)
        if account is None:
            raise StepRefused("Your wallet has no account on the network yet. Put money into it first.")
        fee = max(self._network.max_fee, head.base_fee)
        lack = domain.shortfall(account, head, order.amount, fee)
        if lack is not None:
            raise StepRefused(lack, type="insufficient-balance")
        max_time = int(head.closed_at.timestamp() + self._network.window)
        signed = await self._sign(order, wallet, account.sequence + 1, fee, max_time)

        async def keep(tx: Transaction) -> EnvelopeRow:
            row = EnvelopeRow(
                hash=signed.hash,
                payment_id=order.payment_id,
                address=wallet.address,
                sequence=account.sequence + 1,
                max_time=max_time,
                xdr=signed.xdr,
                state=EnvelopeState.OPEN,
                attempts=0,
                created_at=datetime.now(UTC),
            )
            tx.add(row)
            payment = await tx.get(PaymentRow, order.payment_id)
            if payment is not None:
                payment.status, payment.transaction_hash = PaymentStatus.SUBMITTED, signed.hash
                payment.updated_at = row.created_at
            return row

        try:
            return await self._database.run(keep)
        except IntegrityError as error:
            raise WalletBusy(wallet.address) from error

    async def _sign(self, order: Order, wallet: WalletRow, sequence: int, fee: int, max_time: int) -> Signed:
        seed = self._vault.unseal(wallet.sealed_seed, wallet.address)
        stellar = await load_stellar()
        return stellar.sign_payment(
            order, seed, passphrase=self._network.passphrase, sequence=sequence, fee=fee, max_time=max_time
        )


async def _decide(tx: Transaction, name: str, fate: Included | Rejected | Gone) -> None:
    """Writes down what became of an envelope."""
    row = await tx.get(EnvelopeRow, name)
    if row is None:
        raise LookupError(f"envelope {name} has vanished")
    match fate:
        case Included():
            row.state, row.ledger = EnvelopeState.APPLIED, fate.ledger
        case Rejected():
            row.state = EnvelopeState.REFUSED if fate.ledger is None else EnvelopeState.FAILED
            row.ledger, row.result = fate.ledger, " ".join((fate.code, *fate.operations))
        case Gone():
            row.state = EnvelopeState.EXPIRED
