"""The rules of the ledger: what makes a transaction valid and what it does. Pure; amounts are integers, in stroops.

The rules and their order are those of Stellar's protocol for accounts with one signer and for the two operations that
the sandbox knows. Codes are Horizon's names for the protocol's.
https://developers.stellar.org/docs/data/apis/horizon/api-reference/errors/result-codes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

STROOPS_PER_XLM: Final = 10_000_000

BASE_FEE: Final = 100
"""For each operation."""

BASE_RESERVE: Final = 5_000_000
MINIMUM_BALANCE: Final = 2 * BASE_RESERVE
"""What an account without subentries must keep."""

TOTAL_COINS: Final = 100_000_000_000 * STROOPS_PER_XLM
"""100 billion XLM, all of which exist from the first ledger on."""

LARGEST_BALANCE: Final = 2**63 - 1
PROTOCOL_VERSION: Final = 23
MAX_TRANSACTIONS: Final = 1_000
"""In one ledger."""


class TxCode(StrEnum):
    SUCCESS = "tx_success"
    FAILED = "tx_failed"
    TOO_EARLY = "tx_too_early"
    TOO_LATE = "tx_too_late"
    MISSING_OPERATION = "tx_missing_operation"
    BAD_SEQ = "tx_bad_seq"
    BAD_AUTH = "tx_bad_auth"
    INSUFFICIENT_BALANCE = "tx_insufficient_balance"
    NO_SOURCE_ACCOUNT = "tx_no_source_account"
    INSUFFICIENT_FEE = "tx_insufficient_fee"
    BAD_AUTH_EXTRA = "tx_bad_auth_extra"
    NOT_SUPPORTED = "tx_not_supported"


class OpCode(StrEnum):
    SUCCESS = "op_success"
    MALFORMED = "op_malformed"
    UNDERFUNDED = "op_underfunded"
    NO_DESTINATION = "op_no_destination"
    LINE_FULL = "op_line_full"
    LOW_RESERVE = "op_low_reserve"
    ALREADY_EXISTS = "op_already_exists"
    BAD_AUTH = "op_bad_auth"
    NO_SOURCE_ACCOUNT = "op_no_source_account"
    NOT_SUPPORTED = "op_not_supported"


@dataclass(slots=True)
class Account:
    balance: int
    sequence: int

    @property
    def available(self) -> int:
        """What may be spent: the balance above the reserve."""
        return self.balance - MINIMUM_BALANCE


@dataclass(frozen=True, slots=True)
class Payment:
    source: str
    destination: str
    amount: int


@dataclass(frozen=True, slots=True)
class CreateAccount:
    source: str
    destination: str
    starting_balance: int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """An operation or asset that the sandbox does not know."""

    source: str


Operation = Payment | CreateAccount | Unsupported


@dataclass(frozen=True, slots=True)
class Submission:
    """A signed transaction, decoded and with its signatures checked.

    ``max_fee`` is what its source offers for all operations together. ``signed_by`` holds the accounts, of those it
    needs, whose signature is on it; ``stray_signatures`` says that there are others, too. ``max_time`` 0 is no bound.
    """

    hash: str
    source: str
    sequence: int
    max_fee: int
    operations: tuple[Operation, ...]
    signed_by: frozenset[str]
    stray_signatures: bool = False
    min_time: int = 0
    max_time: int = 0
    supported: bool = True

    @property
    def fee(self) -> int:
        """What is charged: the network's fee, not the offer, because the sandbox's ledgers are never full."""
        return BASE_FEE * len(self.operations)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction: its code, its operations' codes where it got that far, and the fee."""

    code: TxCode
    operations: tuple[OpCode, ...] = ()
    fee_charged: int = 0

    @property
    def successful(self) -> bool:
        return self.code is TxCode.SUCCESS


def refusal(transaction: Submission, accounts: Mapping[str, Account], at: int, waiting: int = 0) -> Outcome | None:
    """Why ``transaction`` cannot go into a ledger that closes ``at`` (seconds since 1970); ``None`` where it can.

    What is refused costs no fee and no sequence number. ``waiting`` is how many transactions of its source are ahead.
    """
    code = _refused_before_signatures(transaction, accounts.get(transaction.source), at, waiting)
    if code is not None:
        return Outcome(code, fee_charged=0)
    if transaction.source not in transaction.signed_by:
        return Outcome(TxCode.BAD_AUTH)
    if accounts[transaction.source].available < transaction.fee:
        return Outcome(TxCode.INSUFFICIENT_BALANCE)
    codes = tuple(
        _malformed(operation, transaction.signed_by) or OpCode.SUCCESS for operation in transaction.operations
    )
    if any(code is not OpCode.SUCCESS for code in codes):
        return Outcome(TxCode.FAILED, codes)
    if transaction.stray_signatures:
        return Outcome(TxCode.BAD_AUTH_EXTRA)
    return None


def _refused_before_signatures(transaction: Submission, source: Account | None, at: int, waiting: int) -> TxCode | None:
    checks = (
        (transaction.supported, TxCode.NOT_SUPPORTED),
        (bool(transaction.operations), TxCode.MISSING_OPERATION),
        (transaction.min_time <= at, TxCode.TOO_EARLY),
        (transaction.max_time == 0 or at <= transaction.max_time, TxCode.TOO_LATE),
        (transaction.max_fee >= transaction.fee, TxCode.INSUFFICIENT_FEE),
        (source is not None, TxCode.NO_SOURCE_ACCOUNT),
        (source is not None and transaction.sequence == source.sequence + waiting + 1, TxCode.BAD_SEQ),
    )
    return next((code for holds, code in checks if not holds), None)


def _malformed(operation: Operation, signed_by: frozenset[str]) -> OpCode | None:
    if operation.source not in signed_by:
        return OpCode.BAD_AUTH
    match operation:
        case Payment(amount=amount) if amount <= 0:
            return OpCode.MALFORMED
        case CreateAccount(source=source, destination=destination) if source == destination:
            return OpCode.MALFORMED
        case Unsupported():
            return OpCode.NOT_SUPPORTED
        case _:
            return None


@dataclass(slots=True)
class Closing:
    """What closing one ledger did. ``applied`` is in the ledger, in this order; ``dropped`` never got into it."""

    applied: list[tuple[Submission, Outcome]] = field(default_factory=list)
    dropped: list[tuple[Submission, Outcome]] = field(default_factory=list)

    @property
    def fees(self) -> int:
        return sum(outcome.fee_charged for _, outcome in self.applied)


def close(accounts: MutableMapping[str, Account], waiting: Iterable[Submission], *, ledger: int, at: int) -> Closing:
    """Closes ledger number ``ledger``: takes the fees and sequence numbers of all that are valid, then applies them.

    ``accounts`` must hold every account that the transactions name, where it exists; it is changed, and grows by the
    accounts that are created.

    Raises:
        ArithmeticError: money appeared or vanished; the ledger must not be kept.
    """
    closing = Closing()
    before = sum(account.balance for account in accounts.values())
    valid = []
    for transaction in waiting:
        refused = refusal(transaction, accounts, at)
        if refused is not None:
            closing.dropped.append((transaction, refused))
            continue
        source = accounts[transaction.source]
        source.balance -= transaction.fee
        source.sequence = transaction.sequence
        valid.append(transaction)
    for transaction in valid:
        closing.applied.append((transaction, _apply(transaction, accounts, ledger)))
    if sum(account.balance for account in accounts.values()) + closing.fees != before:
        raise ArithmeticError(f"ledger {ledger} does not conserve lumens")
    return closing


def _apply(transaction: Submission, accounts: MutableMapping[str, Account], ledger: int) -> Outcome:
    """All operations or none."""
    touched = {name for operation in transaction.operations for name in _names(operation)}
    saved = {name: accounts[name].balance for name in touched if name in accounts}
    codes = tuple(_operate(operation, accounts, ledger) for operation in transaction.operations)
    if all(code is OpCode.SUCCESS for code in codes):
        return Outcome(TxCode.SUCCESS, codes, transaction.fee)
    for name in touched:
        if name in saved:
            accounts[name].balance = saved[name]
        else:
            accounts.pop(name, None)
    return Outcome(TxCode.FAILED, codes, transaction.fee)


def _names(operation: Operation) -> tuple[str, ...]:
    match operation:
        case Payment(source=source, destination=destination) | CreateAccount(source=source, destination=destination):
            return source, destination
        case Unsupported(source=source):
            return (source,)


def names_of(transaction: Submission) -> set[str]:
    """Every account that the transaction names."""
    return {transaction.source, *(name for operation in transaction.operations for name in _names(operation))}


def _operate(operation: Operation, accounts: MutableMapping[str, Account], ledger: int) -> OpCode:
    source = accounts.get(operation.source)
    if source is None:
        return OpCode.NO_SOURCE_ACCOUNT
    match operation:
        case Payment():
            return _pay(source, accounts.get(operation.destination), operation.amount)
        case CreateAccount():
            return _create(source, operation, accounts, ledger)
        case Unsupported():
            return OpCode.NOT_SUPPORTED


def _pay(source: Account, destination: Account | None, amount: int) -> OpCode:
    if destination is None:
        return OpCode.NO_DESTINATION
    if destination is source:
        return OpCode.SUCCESS
    if source.available < amount:
        return OpCode.UNDERFUNDED
    if destination.balance > LARGEST_BALANCE - amount:
        return OpCode.LINE_FULL
    source.balance -= amount
    destination.balance += amount
    return OpCode.SUCCESS


def _create(source: Account, operation: CreateAccount, accounts: MutableMapping[str, Account], ledger: int) -> OpCode:
    if operation.destination in accounts:
        return OpCode.ALREADY_EXISTS
    if operation.starting_balance < MINIMUM_BALANCE:
        return OpCode.LOW_RESERVE
    if source.available < operation.starting_balance:
        return OpCode.UNDERFUNDED
    source.balance -= operation.starting_balance
    accounts[operation.destination] = Account(operation.starting_balance, first_sequence(ledger))
    return OpCode.SUCCESS


def first_sequence(ledger: int) -> int:
    """The sequence number of an account that is created in ``ledger``; its first transaction has the next."""
    return ledger << 32
