"""Horizon's JSON: the resources and problems as Horizon's API reference describes them.

https://developers.stellar.org/docs/data/apis/horizon/api-reference
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from reference.billpay.ledger.domain import BASE_FEE, BASE_RESERVE, MAX_TRANSACTIONS, PROTOCOL_VERSION, TOTAL_COINS
from reference.billpay.ledger.tables import AccountRow, LedgerRow, TransactionRow

HORIZON_VERSION: Final = "billpay-sandbox"

Json = dict[str, Any]


def amount(stroops: int) -> str:
    """Horizon's form of an amount: XLM with seven decimals."""
    return f"{stroops // 10_000_000}.{stroops % 10_000_000:07d}"


def moment(seconds: int) -> str:
    """Horizon's form of a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def token(ledger: int, place: int = 0) -> str:
    """A paging token: Horizon's total order of everything that happened."""
    return str(ledger << 32 | place << 12)


def _links(base: str, **paths: str) -> Json:
    return {
        name: {"href": base + path, "templated": True} if "{" in path else {"href": base + path}
        for name, path in paths.items()
    }


_PAGED = "{?cursor,limit,order}"


def root(base: str, head: LedgerRow, passphrase: str) -> Json:
    return {
        "_links": _links(
            base,
            account="/accounts/{account_id}",
            fee_stats="/fee_stats",
            friendbot="/friendbot{?addr}",
            ledger="/ledgers/{sequence}",
            ledgers=f"/ledgers{_PAGED}",
            self="/",
            transaction="/transactions/{hash}",
            transactions="/transactions",
        ),
        "horizon_version": HORIZON_VERSION,
        "core_version": HORIZON_VERSION,
        "ingest_latest_ledger": head.sequence,
        "history_latest_ledger": head.sequence,
        "history_latest_ledger_closed_at": moment(head.close_time),
        "history_elder_ledger": 1,
        "core_latest_ledger": head.sequence,
        "network_passphrase": passphrase,
        "current_protocol_version": PROTOCOL_VERSION,
        "supported_protocol_version": PROTOCOL_VERSION,
        "core_supported_protocol_version": PROTOCOL_VERSION,
    }


def account(base: str, row: AccountRow) -> Json:
    never_used = row.sequence_ledger == 0
    return {
        "_links": _links(base, self=f"/accounts/{row.address}"),
        "id": row.address,
        "account_id": row.address,
        "sequence": str(row.sequence),
        **({} if never_used else {"sequence_ledger": row.sequence_ledger, "sequence_time": str(row.sequence_time)}),
        "subentry_count": 0,
        "last_modified_ledger": row.last_modified_ledger,
        "last_modified_time": moment(row.last_modified_time),
        "thresholds": {"low_threshold": 0, "med_threshold": 0, "high_threshold": 0},
        "flags": {
            "auth_required": False,
            "auth_revocable": False,
            "auth_immutable": False,
            "auth_clawback_enabled": False,
        },
        "balances": [
            {
                "balance": amount(row.balance),
                "buying_liabilities": "0.0000000",
                "selling_liabilities": "0.0000000",
                "asset_type": "native",
            }
        ],
        "signers": [{"weight": 1, "key": row.address, "type": "ed25519_public_key"}],
        "data": {},
        "num_sponsoring": 0,
        "num_sponsored": 0,
        "paging_token": row.address,
    }


def ledger(base: str, row: LedgerRow) -> Json:
    return {
        "_links": _links(base, self=f"/ledgers/{row.sequence}"),
        "id": row.hash,
        "paging_token": token(row.sequence),
        "hash": row.hash,
        "prev_hash": row.previous_hash,
        "sequence": row.sequence,
        "successful_transaction_count": row.succeeded,
        "failed_transaction_count": row.failed,
        "operation_count": row.operations,
        "tx_set_operation_count": row.operations_tried,
        "closed_at": moment(row.close_time),
        "total_coins": amount(TOTAL_COINS),
        "fee_pool": amount(row.fee_pool),
        "base_fee_in_stroops": BASE_FEE,
        "base_reserve_in_stroops": BASE_RESERVE,
        "max_tx_set_size": MAX_TRANSACTIONS,
        "protocol_version": PROTOCOL_VERSION,
        "header_xdr": row.header_xdr,
    }


def ledgers(base: str, rows: Sequence[LedgerRow], order: str, limit: int, cursor: str) -> Json:
    opposite = "asc" if order == "desc" else "desc"
    first, last = (token(rows[0].sequence), token(rows[-1].sequence)) if rows else (cursor, cursor)

    def page(after: str, direction: str) -> Json:
        return {"href": f"{base}/ledgers?cursor={after}&limit={limit}&order={direction}"}

    return {
        "_links": {"self": page(cursor, order), "next": page(last, order), "prev": page(first, opposite)},
        "_embedded": {"records": [ledger(base, row) for row in rows]},
    }


def transaction(base: str, row: TransactionRow) -> Json:
    place = token(row.ledger, row.place)
    bounds = {"min_time": str(row.min_time)} | ({"max_time": str(row.max_time)} if row.max_time else {})
    return {
        "_links": _links(
            base,
            self=f"/transactions/{row.hash}",
            account=f"/accounts/{row.source}",
            ledger=f"/ledgers/{row.ledger}",
            transaction=f"/transactions/{row.hash}",
        ),
        "id": row.hash,
        "paging_token": place,
        "successful": row.successful,
        "hash": row.hash,
        "ledger": row.ledger,
        "created_at": moment(row.close_time),
        "source_account": row.source,
        "source_account_sequence": str(row.source_sequence),
        "fee_account": row.source,
        "fee_charged": str(row.fee_charged),
        "max_fee": str(row.max_fee),
        "operation_count": len(row.codes),
        "envelope_xdr": row.envelope_xdr,
        "result_xdr": row.result_xdr,
        # An empty list of changes: the sandbox keeps balances, not the history of ledger entries.
        "fee_meta_xdr": "AAAAAA==",
        "memo_type": row.memo_type,
        **({} if row.memo is None else {"memo": row.memo}),
        "signatures": row.signatures.split(),
        **({"preconditions": {"timebounds": bounds}} if row.min_time or row.max_time else {}),
    }


def fee_stats(head: LedgerRow, recent: Sequence[LedgerRow], transactions: Sequence[TransactionRow]) -> Json:
    """Over the last five ledgers; fees are given for one operation."""
    capacity = sum(row.operations_tried for row in recent) / (MAX_TRANSACTIONS * max(1, len(recent)))
    return {
        "last_ledger": str(head.sequence),
        "last_ledger_base_fee": str(BASE_FEE),
        "ledger_capacity_usage": f"{capacity:.2f}",
        "fee_charged": _distribution([row.fee_charged // len(row.codes) for row in transactions]),
        "max_fee": _distribution([row.max_fee // len(row.codes) for row in transactions]),
    }


def _distribution(fees: Sequence[int]) -> dict[str, str]:
    known = sorted(fees) or [BASE_FEE]
    spread = {"max": known[-1], "min": known[0], "mode": Counter(known).most_common(1)[0][0]}
    percentiles = {
        f"p{percent}": known[max(0, -(-len(known) * percent // 100) - 1)]
        for percent in (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
    }
    return {name: str(fee) for name, fee in {**spread, **percentiles}.items()}


def problem(kind: str, status: HTTPStatus, title: str, detail: str, **extras: object) -> Json:
    document: Json = {
        "type": f"https://stellar.org/horizon-errors/{kind}",
        "title": title,
        "status": int(status),
        "detail": detail,
    }
    return {**document, "extras": extras} if extras else document


def not_found() -> Json:
    return problem(
        "not_found",
        HTTPStatus.NOT_FOUND,
        "Resource Missing",
        "The resource at the url requested was not found. This usually occurs for one of two reasons: the url "
        "requested is not valid, or no data in our database could be found with the parameters provided.",
    )


def bad_request(field: str, reason: str) -> Json:
    detail = "The request you sent was invalid in some way."
    return problem("bad_request", HTTPStatus.BAD_REQUEST, "Bad Request", detail, invalid_field=field, reason=reason)


def already_funded() -> Json:
    detail = "account already funded to starting balance"
    return problem("bad_request", HTTPStatus.BAD_REQUEST, "Bad Request", detail)


def transaction_malformed(envelope: str) -> Json:
    return problem(
        "transaction_malformed",
        HTTPStatus.BAD_REQUEST,
        "Transaction Malformed",
        "The transaction envelope in this request could not be decoded. It should be an XDR TransactionEnvelope struct "
        "encoded using base64; the one that was read is in `extras.envelope_xdr`.",
        envelope_xdr=envelope,
    )


def transaction_failed(envelope: str, result: str, code: str, operations: Sequence[str]) -> Json:
    codes: Mapping[str, object] = {"transaction": code} | ({"operations": list(operations)} if operations else {})
    return problem(
        "transaction_failed",
        HTTPStatus.BAD_REQUEST,
        "Transaction Failed",
        "The transaction failed when submitted to the network. The `extras.result_codes` field on this response "
        "contains further details.",
        envelope_xdr=envelope,
        result_codes=codes,
        result_xdr=result,
    )


def timeout() -> Json:
    return problem(
        "timeout",
        HTTPStatus.GATEWAY_TIMEOUT,
        "Timeout",
        "Your request timed out before completing. Please try your request again. If you are submitting a transaction "
        "make sure you are sending exactly the same transaction (with the same sequence number).",
    )


def unsupported_media_type() -> Json:
    return problem(
        "unsupported_media_type",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "Unsupported Media Type",
        "The request has an unsupported content type. Presently, the only supported content type is "
        "application/x-www-form-urlencoded.",
    )
