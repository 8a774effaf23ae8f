"""Envelopes as they come: decoded, hashed and their signatures checked, all by stellar-sdk (see ``codec``)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable

from stellar_sdk import (
    CreateAccount,
    FeeBumpTransactionEnvelope,
    Keypair,
    Memo,
    Operation,
    Payment,
    Transaction,
    TransactionEnvelope,
)
from stellar_sdk.exceptions import BadSignatureError
from stellar_sdk.memo import HashMemo, IdMemo, NoneMemo, ReturnHashMemo, TextMemo

from reference.billpay.ledger import domain
from reference.billpay.ledger.codec import Envelope, MalformedEnvelope
from reference.billpay.ledger.domain import Submission


def decode(envelope: str, passphrase: str) -> Envelope:
    """The decoding described at ``Codec.decode``."""
    try:
        parsed = _parse(envelope, passphrase)
    except Exception as error:  # noqa: BLE001  the SDK raises whatever its parsers meet, from EOFError to struct.error
        raise MalformedEnvelope(str(error) or type(error).__name__) from None
    signatures = tuple(_base64(signature.signature) for signature in parsed.signatures)
    if isinstance(parsed, FeeBumpTransactionEnvelope):
        source = parsed.transaction.fee_source.account_id
        fee_bump = Submission(parsed.hash_hex(), source, 0, 0, (), frozenset(), supported=False)
        return Envelope(envelope, fee_bump, "none", None, signatures)
    kind, memo = _memo(parsed.transaction.memo)
    return Envelope(envelope, _submission(parsed), kind, memo, signatures)


def _parse(envelope: str, passphrase: str) -> TransactionEnvelope | FeeBumpTransactionEnvelope:
    if FeeBumpTransactionEnvelope.is_fee_bump_transaction_envelope(envelope):
        return FeeBumpTransactionEnvelope.from_xdr(envelope, passphrase)
    return TransactionEnvelope.from_xdr(envelope, passphrase)


def _submission(envelope: TransactionEnvelope) -> Submission:
    transaction = envelope.transaction
    source = transaction.source.account_id
    operations = tuple(_operation(operation, source) for operation in transaction.operations)
    signed_by, stray = _signers(envelope, {source, *(operation.source for operation in operations)})
    bounds = transaction.preconditions.time_bounds if transaction.preconditions else None
    return Submission(
        hash=envelope.hash_hex(),
        source=source,
        sequence=transaction.sequence,
        max_fee=transaction.fee,
        operations=operations,
        signed_by=signed_by,
        stray_signatures=stray,
        min_time=bounds.min_time if bounds else 0,
        max_time=bounds.max_time if bounds else 0,
        supported=_supported(transaction),
    )


def _supported(transaction: Transaction) -> bool:
    """Time bounds are the only precondition that the sandbox knows, and contracts it does not know."""
    conditions = transaction.preconditions
    beyond_time = conditions is not None and (
        conditions.ledger_bounds
        or conditions.min_sequence_number is not None
        or conditions.min_sequence_age
        or conditions.min_sequence_ledger_gap
        or conditions.extra_signers
    )
    return not beyond_time and not transaction.is_soroban_transaction()


def _operation(operation: Operation, transaction_source: str) -> domain.Operation:
    source = operation.source.account_id if operation.source else transaction_source
    if isinstance(operation, Payment) and operation.asset.is_native():
        amount = Operation.to_xdr_amount(operation.amount)
        return domain.Payment(source, operation.destination.account_id, amount)
    if isinstance(operation, CreateAccount):
        return domain.CreateAccount(source, operation.destination, Operation.to_xdr_amount(operation.starting_balance))
    return domain.Unsupported(source)


def _signers(envelope: TransactionEnvelope, needed: Iterable[str]) -> tuple[frozenset[str], bool]:
    """Which of the ``needed`` accounts have signed, and whether a signature is left that is none of theirs."""
    message = envelope.hash()
    unused = list(envelope.signatures)
    signed = set()
    for address in needed:
        key = Keypair.from_public_key(address)
        hint = key.signature_hint()
        for signature in unused:
            if signature.signature_hint == hint and _is_signature(key, message, signature.signature):
                signed.add(address)
                unused.remove(signature)
                break
    return frozenset(signed), bool(unused)


def _is_signature(key: Keypair, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(message, signature)
    except BadSignatureError:
        return False
    return True


def _memo(memo: Memo) -> tuple[str, str | None]:
    """Horizon's type and text of a memo."""
    match memo:
        case TextMemo():
            return "text", memo.memo_text.decode("utf-8", "replace")
        case IdMemo():
            return "id", str(memo.memo_id)
        case HashMemo():
            return "hash", _base64(memo.memo_hash)
        case ReturnHashMemo():
            return "return", _base64(memo.memo_return)
        case NoneMemo():
            return "none", None
        case _:
            raise MalformedEnvelope(f"{type(memo).__name__} is no memo")


def _base64(value: bytes) -> str:
    return b64encode(value).decode("ascii")
