"""What the ledger says in XDR: transaction results and ledger headers, each as the protocol defines it.

Loads stellar-sdk, see ``codec``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256

from stellar_sdk import xdr

from reference.billpay.ledger import domain
from reference.billpay.ledger.codec import Header
from reference.billpay.ledger.domain import OpCode, Outcome, TxCode

_TX_CODES = {
    TxCode.SUCCESS: xdr.TransactionResultCode.txSUCCESS,
    TxCode.FAILED: xdr.TransactionResultCode.txFAILED,
    TxCode.TOO_EARLY: xdr.TransactionResultCode.txTOO_EARLY,
    TxCode.TOO_LATE: xdr.TransactionResultCode.txTOO_LATE,
    TxCode.MISSING_OPERATION: xdr.TransactionResultCode.txMISSING_OPERATION,
    TxCode.BAD_SEQ: xdr.TransactionResultCode.txBAD_SEQ,
    TxCode.BAD_AUTH: xdr.TransactionResultCode.txBAD_AUTH,
    TxCode.INSUFFICIENT_BALANCE: xdr.TransactionResultCode.txINSUFFICIENT_BALANCE,
    TxCode.NO_SOURCE_ACCOUNT: xdr.TransactionResultCode.txNO_ACCOUNT,
    TxCode.INSUFFICIENT_FEE: xdr.TransactionResultCode.txINSUFFICIENT_FEE,
    TxCode.BAD_AUTH_EXTRA: xdr.TransactionResultCode.txBAD_AUTH_EXTRA,
    TxCode.NOT_SUPPORTED: xdr.TransactionResultCode.txNOT_SUPPORTED,
}
_PAYMENT_CODES = {
    OpCode.SUCCESS: xdr.PaymentResultCode.PAYMENT_SUCCESS,
    OpCode.MALFORMED: xdr.PaymentResultCode.PAYMENT_MALFORMED,
    OpCode.UNDERFUNDED: xdr.PaymentResultCode.PAYMENT_UNDERFUNDED,
    OpCode.NO_DESTINATION: xdr.PaymentResultCode.PAYMENT_NO_DESTINATION,
    OpCode.LINE_FULL: xdr.PaymentResultCode.PAYMENT_LINE_FULL,
}
_CREATE_CODES = {
    OpCode.SUCCESS: xdr.CreateAccountResultCode.CREATE_ACCOUNT_SUCCESS,
    OpCode.MALFORMED: xdr.CreateAccountResultCode.CREATE_ACCOUNT_MALFORMED,
    OpCode.UNDERFUNDED: xdr.CreateAccountResultCode.CREATE_ACCOUNT_UNDERFUNDED,
    OpCode.LOW_RESERVE: xdr.CreateAccountResultCode.CREATE_ACCOUNT_LOW_RESERVE,
    OpCode.ALREADY_EXISTS: xdr.CreateAccountResultCode.CREATE_ACCOUNT_ALREADY_EXIST,
}
_OUTER_CODES = {
    OpCode.BAD_AUTH: xdr.OperationResultCode.opBAD_AUTH,
    OpCode.NO_SOURCE_ACCOUNT: xdr.OperationResultCode.opNO_ACCOUNT,
    OpCode.NOT_SUPPORTED: xdr.OperationResultCode.opNOT_SUPPORTED,
}


def result_xdr(outcome: Outcome, operations: Sequence[domain.Operation]) -> str:
    """The ``TransactionResult`` of an outcome, in base64."""
    return _result(outcome, operations).to_xdr()


def _result(outcome: Outcome, operations: Sequence[domain.Operation]) -> xdr.TransactionResult:
    results = None
    if outcome.code in {TxCode.SUCCESS, TxCode.FAILED}:
        results = [_operation_result(*pair) for pair in zip(operations, outcome.operations, strict=True)]
    return xdr.TransactionResult(
        xdr.Int64(outcome.fee_charged),
        xdr.TransactionResultResult(_TX_CODES[outcome.code], results=results),
        xdr.TransactionResultExt(0),
    )


def _operation_result(operation: domain.Operation, code: OpCode) -> xdr.OperationResult:
    if code in _OUTER_CODES:
        return xdr.OperationResult(_OUTER_CODES[code])
    inner = xdr.OperationResultCode.opINNER
    if isinstance(operation, domain.CreateAccount):
        created = xdr.CreateAccountResult(_CREATE_CODES[code])
        return xdr.OperationResult(
            inner, xdr.OperationResultTr(xdr.OperationType.CREATE_ACCOUNT, create_account_result=created)
        )
    if isinstance(operation, domain.Payment):
        paid = xdr.PaymentResult(_PAYMENT_CODES[code])
        return xdr.OperationResult(inner, xdr.OperationResultTr(xdr.OperationType.PAYMENT, payment_result=paid))
    # An operation that the sandbox does not know passed its own check beside one that failed.
    return xdr.OperationResult(xdr.OperationResultCode.opNOT_SUPPORTED)


def header(
    *,
    sequence: int,
    previous_hash: str,
    close_time: int,
    fee_pool: int,
    envelopes: Sequence[str] = (),
    results: Sequence[tuple[str, str]] = (),
) -> Header:
    """The header described at ``Codec.header``.

    The sandbox keeps its state in a database and not in buckets, so the bucket list's hash is zero.
    """
    set_hash = sha256(bytes.fromhex(previous_hash) + "".join(envelopes).encode("ascii")).digest()
    result_hash = sha256("".join(name + result for name, result in results).encode("ascii")).digest()
    zero = xdr.Hash(bytes(32))
    built = xdr.LedgerHeader(
        ledger_version=xdr.Uint32(domain.PROTOCOL_VERSION),
        previous_ledger_hash=xdr.Hash(bytes.fromhex(previous_hash)),
        scp_value=xdr.StellarValue(
            xdr.Hash(set_hash),
            xdr.TimePoint(xdr.Uint64(close_time)),
            [],
            xdr.StellarValueExt(xdr.StellarValueType.STELLAR_VALUE_BASIC),
        ),
        tx_set_result_hash=xdr.Hash(result_hash),
        bucket_list_hash=zero,
        ledger_seq=xdr.Uint32(sequence),
        total_coins=xdr.Int64(domain.TOTAL_COINS),
        fee_pool=xdr.Int64(fee_pool),
        inflation_seq=xdr.Uint32(0),
        id_pool=xdr.Uint64(0),
        base_fee=xdr.Uint32(domain.BASE_FEE),
        base_reserve=xdr.Uint32(domain.BASE_RESERVE),
        max_tx_set_size=xdr.Uint32(domain.MAX_TRANSACTIONS),
        skip_list=[zero, zero, zero, zero],
        ext=xdr.LedgerHeaderExt(0),
    )
    packed = built.to_xdr_bytes()
    return Header(b64encode(packed).decode("ascii"), sha256(packed).hexdigest())
