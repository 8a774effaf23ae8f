"""What the payment service knows by itself: what can be afforded, what an answer of the network means. Pure.

Amounts are in stroops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from reference.billpay.contracts.money import Amount, StellarAddress, from_stroops

MEMO_BYTES: Final = 28
"""The most that a text memo holds."""


REFUNDS: Final = "billpay:refunds"
"""The owner of billpay's own wallet: no user is called so, because users' names are UUIDs."""


class PayBill(BaseModel):
    """The state of the saga. What stands behind ``None`` is known after the step that finds it out."""

    payment_id: UUID
    bill_id: UUID
    owner: str
    amount: Amount | None = None
    payee: StellarAddress | None = None
    reference: str = ""
    coupon: str = ""
    transaction_hash: str = ""
    ledger: int = 0


class RefundPayment(BaseModel):
    """The state of the saga that pays a payment back."""

    refund_id: UUID
    payment_id: UUID
    bill_id: UUID
    owner: str
    amount: Amount
    address: StellarAddress
    coupon: str = ""
    transaction_hash: str = ""
    ledger: int = 0


def lock_of(bill_id: UUID) -> str:
    """What one saga at a time is at work on: another payment of the bill, or its refund, waits until this one has
    ended."""
    return f"bill:{bill_id}"


class EnvelopeState(StrEnum):
    """``open`` until the network has decided: ``applied``, ``failed`` (in a ledger, without effect but for the fee),
    ``refused`` (in no ledger) or ``expired`` (a ledger beyond its time bound has closed without it)."""

    OPEN = "open"
    APPLIED = "applied"
    FAILED = "failed"
    REFUSED = "refused"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Order:
    """A payment to be made: from whose wallet, to which account, how much, and what the provider reads beside it."""

    payment_id: UUID
    owner: str
    payee: str
    amount: int
    memo: str


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account as of ``ledger``, where Horizon says which that is."""

    address: str
    balance: int
    sequence: int
    subentries: int
    ledger: int | None


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The last closed ledger and what the network asks for."""

    sequence: int
    closed_at: datetime
    base_fee: int
    base_reserve: int


@dataclass(frozen=True, slots=True)
class Included:
    """A transaction that is in a ledger, to some effect or, not ``successful``, to none but its fee."""

    hash: str
    ledger: int
    successful: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """Horizon's answer to a submission that had no effect. ``ledger``: the one that took the fee for it."""

    code: str
    operations: tuple[str, ...] = ()
    ledger: int | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """An envelope that is in no ledger and never will be."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A fresh key pair: the account's address and the 32 bytes that sign for it."""

    address: str
    seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed envelope. ``hash`` is the transaction's, by which the network knows it."""

    xdr: str
    hash: str


def memo(reference: str, payment_id: UUID) -> str:
    """What the provider sees on the ledger: the bill's reference where it fits, else the payment's number."""
    return reference if 0 < len(reference.encode()) <= MEMO_BYTES else payment_id.hex[:MEMO_BYTES]


def shortfall(account: AccountState, head: LedgerHead, amount: int, fee: int) -> str | None:
    """Why the wallet cannot pay, for the person it belongs to; ``None`` where it can.

    The network keeps a reserve of two entries, and one more for each subentry, in every account.
    """
    reserve = (2 + account.subentries) * head.base_reserve
    if account.balance - reserve >= amount + fee:
        return None
    return (
        f"Your wallet holds {xlm(account.balance)} XLM, of which {xlm(reserve)} must stay in it. "
        f"This payment needs {xlm(amount)} and up to {xlm(fee)} as the network's fee. Nothing was taken."
    )


def xlm(stroops: int) -> str:
    """An amount as people write it."""
    plain = from_stroops(stroops).normalize()
    return format(plain if plain != plain.to_integral_value() else plain.quantize(Decimal(1)), "f")


_OPERATION_REASONS: Final = {
    "op_underfunded": "Your wallet did not hold enough when the network made the payment.",
    "op_no_destination": "The provider's account does not exist on the network. Ask the provider for another.",
    "op_line_full": "The provider's account cannot take this amount.",
}
_TRANSACTION_REASONS: Final = {
    "tx_insufficient_balance": "Your wallet does not hold enough for the network's fee.",
    "tx_insufficient_fee": "The network is busy and asks for a higher fee than we offer. Try again later.",
    "tx_no_source_account": "Your wallet has no account on the network yet. Put money into it first.",
}


def reason(code: str, operations: Sequence[str], *, fee_was_taken: bool) -> str:
    """What went wrong, in a person's words."""
    failed = next((operation for operation in operations if operation != "op_success"), "")
    known = _OPERATION_REASONS.get(failed) or _TRANSACTION_REASONS.get(code)
    what = known or f"The network refused the payment ({failed or code})."
    return f"{what} {'Only the fee was taken.' if fee_was_taken else 'Nothing was taken.'}"


def ruled_out(*, sequence: int, max_time: int, account: AccountState | None, head: LedgerHead, lag: float) -> bool:
    """Whether a transaction that Horizon does not know by its hash can no longer get into a ledger, and has not.

    A closed ledger must have passed its time bound. That it is in none before follows from the account, as of that
    ledger or later, not having used its sequence number. Where the number is used, by whatever it may be, the history
    behind a load balancer may lag behind the state, and is given ``lag`` seconds of ledgers to catch up.
    """
    passed = head.closed_at.timestamp() - max_time
    stale = account is not None and account.ledger is not None and account.ledger < head.sequence
    if passed <= 0 or stale:
        return False
    return account is None or account.sequence < sequence or passed > lag
