"""The story that ``microkit demo`` tells: somebody pays a bill, and then cannot pay another."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from microkit.console.story import Story, StoryBroken, new_trace_id

AMOUNT = Decimal("42.5000000")
TOO_MUCH = Decimal("25000.0000000")
"""More than friendbot opens a wallet with."""

FINAL = ("settled", "failed")


@dataclass(frozen=True, slots=True)
class Person:
    """Who pays: an access token, and the wallet's address on the ledger."""

    token: str
    wallet: str


async def story(story: Story) -> None:
    """Tells it against a running system.

    Raises:
        StoryBroken: a call is not answered as it should be.
    """
    person = await open_account(story)
    payee = await open_provider(story)
    await pay(story, person, payee)
    await fail_to_pay(story, person, payee)


async def open_account(story: Story) -> Person:
    story.chapter("Somebody opens an account and a wallet")
    email = f"ada-{secrets.token_hex(6)}@example.com"
    password = secrets.token_urlsafe(18)
    new_user = {"email": email, "password": password, "name": "Ada Nwosu"}
    await story.call("Ada registers", "POST", "/api/users", body=new_user, expect=201)
    credentials = {"email": email, "password": password}
    tokens = await story.call("Ada logs in", "POST", "/api/sessions", body=credentials, expect=201)
    token = str(tokens["access_token"])
    await story.call("The token is hers", "GET", "/api/users/me", token=token)
    await story.call("Without a token the gateway lets nobody see bills", "GET", "/api/bills", expect=401)
    wallet = await story.call("Ada opens a wallet", "POST", "/api/payments/wallet", token=token, expect=201)
    wallet = await story.until(
        "The wallet is funded on the ledger",
        "/api/payments/wallet",
        lambda found: Decimal(found["balance"]) > 0,
        token=token,
    )
    return Person(token, str(wallet["address"]))


async def open_provider(story: Story) -> str:
    """An account of the demo's own, so that nobody else's payments disturb the sums."""
    from stellar_sdk import Keypair  # noqa: PLC0415  two thirds of a second, which only a story that is told should take

    address = Keypair.random().public_key
    await story.call("A utility provider opens its account", "GET", f"/friendbot?addr={address}", service="ledger")
    return address


async def pay(story: Story, person: Person, payee: str) -> None:
    story.chapter("Ada pays a bill")
    bill = await enter_bill(story, person, payee, AMOUNT)
    before = {"payer": await balance(story, person.wallet), "payee": await balance(story, payee)}
    trace_id = new_trace_id()
    payment = await settle_or_fail(story, person, str(bill["id"]), trace_id)
    story.check("The payment is settled", payment["status"] == "settled", payment["reason"] or payment["status"])
    bill = await story.until(
        "The bill is settled",
        f"/api/bills/{bill['id']}",
        lambda found: found["status"] == "settled" or payment["status"] == "failed",
        token=person.token,
    )
    after = {"payer": await balance(story, person.wallet), "payee": await balance(story, payee)}
    story.check("The bill names the payment", bill["payment_id"] == payment["id"], bill["status"])
    await check_money(story, str(payment["transaction_hash"]), before, after)
    story.result |= {"bill": bill, "payment": payment}
    await check_books(story, person, bill)
    await check_events(story, trace_id)
    await check_trace(story, trace_id)


async def check_money(
    story: Story, transaction_hash: str, before: dict[str, Decimal], after: dict[str, Decimal]
) -> None:
    record = await story.call(
        "The transaction is in the ledger", "GET", f"/transactions/{transaction_hash}", service="ledger"
    )
    fee = Decimal(record["fee_charged"]).scaleb(-7)
    moved = {who: after[who] - before[who] for who in before}
    story.check("The ledger took the transaction", bool(record["successful"]), f"ledger {record['ledger']}")
    story.check("The provider received exactly the amount", moved["payee"] == AMOUNT, f"{moved['payee']:+} XLM")
    paid = f"{moved['payer']:+} XLM, of which {fee} are the fee"
    story.check("Ada paid exactly the amount and the network's fee", moved["payer"] == -(AMOUNT + fee), paid)
    story.result["balances"] = {
        who: {"before": str(before[who]), "after": str(after[who]), "moved": str(moved[who])} for who in before
    }
    story.result |= {"amount": str(AMOUNT), "fee": str(fee)}


async def check_books(story: Story, person: Person, bill: Any) -> None:
    books = await story.until(
        "Billing has compared the payment with the bill",
        f"/api/bills/{bill['id']}/reconciliations",
        bool,
        token=person.token,
    )
    verdicts = [entry["verdict"] for entry in books]
    story.check("What was billed and what was paid agree", verdicts == ["agreed"], ", ".join(verdicts))
    story.result["reconciliations"] = books


async def check_events(story: Story, trace_id: str) -> None:
    story.chapter("What happened behind the gateway")
    events = await story.show_events(trace_id)
    types = [event["type"].rpartition(".")[2] for event in events]
    for wanted in ("PaymentStarted", "PaymentSettled", "BillSettled"):
        story.check(f"{wanted} was published once", types.count(wanted) == 1, ", ".join(types))
    sagas = await story.show_sagas(trace_id)
    story.check("One saga ran, to its end", [saga["status"] for saga in sagas] == ["completed"], _statuses(sagas))
    story.result |= {"events": events, "saga": sagas[0] if sagas else None}


async def check_trace(story: Story, trace_id: str) -> None:
    trace = await story.show_trace(trace_id, complete=lambda found: not missing_from(found))
    missing = missing_from(trace)
    story.check(
        "One trace crosses gateway, payment, billing and the event",
        not missing,
        f"missing: {', '.join(missing)}" if missing else f"{len(trace['spans'])} spans of {_services(trace)}",
    )
    story.result["trace"] = trace


def missing_from(trace: dict[str, Any]) -> list[str]:
    """What the trace of a payment must show and does not."""
    missing = [service for service in ("gateway", "payment", "billing") if service not in trace["services"]]
    if not any(
        span["service"] == "billing"
        and span["kind"] == "consumer"
        and str(span["attributes"].get("messaging.message.type", "")).endswith(".PaymentSettled")
        for span in trace["spans"]
    ):
        missing.append("PaymentSettled, handled by billing")
    return missing


async def fail_to_pay(story: Story, person: Person, payee: str) -> None:
    story.chapter("Ada cannot pay a bill that is larger than her wallet")
    bill = await enter_bill(story, person, payee, TOO_MUCH)
    before = [await balance(story, address) for address in (person.wallet, payee)]
    trace_id = new_trace_id()
    payment = await settle_or_fail(story, person, str(bill["id"]), trace_id)
    story.check(
        "The payment failed, with a reason",
        payment["status"] == "failed" and bool(payment["reason"]),
        payment["reason"],
    )
    bill = await story.until(
        "The bill is open again",
        f"/api/bills/{bill['id']}",
        lambda found: found["status"] == "open",
        token=person.token,
    )
    after = [await balance(story, address) for address in (person.wallet, payee)]
    story.check("Nobody paid and nobody received anything", after == before)
    sagas = await story.show_sagas(trace_id)
    story.check("The saga was compensated", [saga["status"] for saga in sagas] == ["compensated"], _statuses(sagas))
    story.result["refused"] = {"bill": bill, "payment": payment, "saga": sagas[0] if sagas else None}


async def enter_bill(story: Story, person: Person, payee: str, amount: Decimal) -> Any:
    body = {
        "provider": "Kano Solar",
        "reference": f"INV-{secrets.token_hex(4).upper()}",
        "amount": str(amount),
        "payee": payee,
        "due_at": (datetime.now(UTC) + timedelta(days=14)).isoformat(),
    }
    return await story.call(
        f"Ada enters a bill of {amount} XLM", "POST", "/api/bills", body=body, token=person.token, expect=201
    )


async def settle_or_fail(story: Story, person: Person, bill_id: str, trace_id: str) -> Any:
    payment = await story.call(
        "Ada pays it",
        "POST",
        "/api/payments",
        body={"bill_id": bill_id},
        token=person.token,
        trace_id=trace_id,
        expect=202,
    )
    return await story.until(
        "The payment comes to its end",
        f"/api/payments/{payment['id']}",
        lambda found: found["status"] in FINAL,
        token=person.token,
        within=60,
    )


async def balance(story: Story, address: str) -> Decimal:
    """What an account holds on the ledger, in XLM."""
    account = await story.call(f"The balance of {address[:6]}…", "GET", f"/accounts/{address}", service="ledger")
    for held in account["balances"]:
        if held["asset_type"] == "native":
            return Decimal(held["balance"])
    raise StoryBroken(f"The account {address} holds no XLM")


def _statuses(sagas: list[dict[str, Any]]) -> str:
    return ", ".join(saga["status"] for saga in sagas) or "none"


def _services(trace: dict[str, Any]) -> str:
    return ", ".join(trace["services"])
