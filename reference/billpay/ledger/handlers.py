"""Horizon's endpoints."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import orjson
from pydantic import Field
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import Response

from microkit.db import Transaction
from reference.billpay.ledger import answers, closing
from reference.billpay.ledger.closing import Refused
from reference.billpay.ledger.codec import MalformedEnvelope
from reference.billpay.ledger.node import AlreadyFunded, Node, NotYetClosed
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.ledger.tables import AccountRow, LedgerRow, TransactionRow

FEE_STATS_LEDGERS = 5
FORM = "application/x-www-form-urlencoded"


def _answer(document: dict[str, Any]) -> Response:
    """A resource, or a problem under its own status."""
    status = document.get("status", 200)
    kind = "application/problem+json" if status != 200 else "application/hal+json"
    return Response(orjson.dumps(document), status, media_type=f"{kind}; charset=utf-8")


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


async def root(request: Request, tx: Transaction, settings: LedgerSettings) -> Response:
    """The network's name and what there is."""
    return _answer(answers.root(_base(request), await closing.latest(tx), settings.network_passphrase))


async def read_account(account_id: str, request: Request, tx: Transaction) -> Response:
    """An account as of the last closed ledger."""
    row = await tx.get(AccountRow, account_id)
    answer = _answer(answers.not_found() if row is None else answers.account(_base(request), row))
    # Which state this is. A client that rules out that a transaction was applied has to know.
    answer.headers["Latest-Ledger"] = str((await closing.latest(tx)).sequence)
    return answer


async def list_ledgers(
    request: Request,
    tx: Transaction,
    order: Literal["asc", "desc"] = "asc",
    limit: Annotated[int, Field(ge=1, le=200)] = 10,
    cursor: Annotated[str, Field(pattern=r"^(\d{1,18}|now)?$")] = "",
) -> Response:
    """Closed ledgers, by their sequence."""
    ledgers = select(LedgerRow).limit(limit)
    by = LedgerRow.sequence
    ledgers = ledgers.order_by(by.desc() if order == "desc" else by)
    if cursor.isdigit():
        after = int(cursor) >> 32
        ledgers = ledgers.where(by < after if order == "desc" else by > after)
    return _answer(answers.ledgers(_base(request), await tx.scalars(ledgers), order, limit, cursor))


async def read_ledger(
    sequence: Annotated[int, Field(ge=1, le=2**31 - 1)], request: Request, tx: Transaction
) -> Response:
    """One closed ledger."""
    row = await tx.get(LedgerRow, sequence)
    return _answer(answers.not_found() if row is None else answers.ledger(_base(request), row))


async def fee_stats(tx: Transaction) -> Response:
    """What transactions of the last five ledgers paid."""
    recent = await tx.scalars(select(LedgerRow).order_by(LedgerRow.sequence.desc()).limit(FEE_STATS_LEDGERS))
    paid = await tx.scalars(select(TransactionRow).where(TransactionRow.ledger >= recent[-1].sequence))
    return _answer(answers.fee_stats(recent[0], recent, paid))


async def submit_transaction(request: Request, body: bytes, node: Node) -> Response:
    """Takes the form field ``tx`` into a ledger, and answers when that is closed."""
    media_type = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    if media_type != FORM:
        return _answer(answers.unsupported_media_type())
    envelope = _field(body, "tx")
    if not envelope:
        return _answer(answers.bad_request("tx", "The form field tx is missing"))
    try:
        return _answer(await _outcome(_base(request), envelope, node.submit(envelope)))
    except MalformedEnvelope:
        return _answer(answers.transaction_malformed(envelope))


def _field(form: bytes, name: str) -> str:
    """The first value of a form field, empty where there is none or the form is none."""
    try:
        return parse_qs(form.decode("ascii"), max_num_fields=10).get(name, [""])[0]
    except ValueError:  # UnicodeDecodeError is one
        return ""


async def _outcome(base: str, envelope: str, submitted: Awaitable[TransactionRow]) -> dict[str, Any]:
    """What became of a submission: a transaction in a ledger, or the problem that Horizon has for it."""
    try:
        row = await submitted
    except Refused as refused:
        outcome = refused.outcome
        return answers.transaction_failed(envelope, refused.result_xdr, outcome.code, outcome.operations)
    except NotYetClosed:
        return answers.timeout()
    if not row.successful:
        return answers.transaction_failed(envelope, row.result_xdr, row.code, row.codes)
    return answers.transaction(base, row)


async def read_transaction(hash: str, request: Request, tx: Transaction) -> Response:  # noqa: A002  Horizon's name
    """A transaction that is in a ledger, successful or not."""
    row = await tx.get(TransactionRow, hash.lower())
    return _answer(answers.not_found() if row is None else answers.transaction(_base(request), row))


async def friendbot(addr: str, request: Request, node: Node) -> Response:
    """Opens an account with play money."""
    try:
        return _answer(await _outcome(_base(request), "", node.fund(addr)))
    except AlreadyFunded:
        return _answer(answers.already_funded())
    except ValueError:
        return _answer(answers.bad_request("addr", "The address is no Stellar account"))
