"""Paying bills over the sandbox ledger: real envelopes, real HTTP between the services, both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import select

from microkit.testing.system import as_user
from reference.billpay.contracts.billing import Billing, BillStatus, Verdict
from reference.billpay.contracts.payment import NewPayment, Payments, PaymentStatus, WalletMissing
from reference.billpay.ledger.domain import BASE_FEE, TOTAL_COINS
from reference.billpay.payment.tables import EnvelopeRow
from tests.reference.billpay.people import Billpay, Person

pytestmark = pytest.mark.anyio

XLM = 10_000_000


async def envelopes(billpay: Billpay, *people: Person) -> list[EnvelopeRow]:
    """Every envelope that was signed for these people's wallets, in their order."""
    addresses = [person.wallet.address for person in people if person.wallet is not None]
    theirs = select(EnvelopeRow).where(EnvelopeRow.address.in_(addresses)).order_by(EnvelopeRow.created_at)
    async with billpay.system["payment"].database.transaction(read_only=True) as tx:
        return list(await tx.scalars(theirs))


async def test_a_paid_bill_is_settled_and_the_ledger_moved_exactly_its_amount(billpay: Billpay) -> None:
    ann = await billpay.person()
    payee = await billpay.new_account()
    assert ann.wallet is not None
    before, payee_before = await billpay.balance(ann.wallet.address), await billpay.balance(payee)
    bill = await ann.bill("42.5000001", payee=payee)
    payment = await ann.pay(bill)
    assert (payment.status, payment.reason) == (PaymentStatus.SETTLED, None)
    assert payment.transaction_hash is not None
    assert payment.ledger is not None
    settled = await ann.read_bill(bill)
    assert (settled.status, settled.payment_id) == (BillStatus.SETTLED, payment.id)
    assert await billpay.balance(payee) - payee_before == 425_000_001
    assert before - await billpay.balance(ann.wallet.address) == 425_000_001 + BASE_FEE
    assert await billpay.all_money() == TOTAL_COINS


async def test_a_settled_payment_is_reconciled_with_its_bill(billpay: Billpay) -> None:
    ann = await billpay.person()
    bill = await ann.bill()
    payment = await ann.pay(bill)
    async with asyncio.timeout(60):
        while True:
            with as_user(ann.token):
                found = await billpay.client(Billing).reconciliations(bill.id)
            if found:
                break
            await asyncio.sleep(0.02)
    assert [(one.payment_id, one.verdict, one.transaction_hash) for one in found] == [
        (payment.id, Verdict.AGREED, payment.transaction_hash)
    ]


async def test_who_has_too_little_is_told_so_and_the_bill_is_open_again(billpay: Billpay) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    before = await billpay.balance(ann.wallet.address)
    bill = await ann.bill("10000")
    payment = await ann.pay(bill)
    assert payment.status is PaymentStatus.FAILED
    assert payment.reason == (
        "Your wallet holds 10000 XLM, of which 1 must stay in it. "
        "This payment needs 10000 and up to 0.001 as the network's fee. Nothing was taken."
    )
    assert (await billpay.status_of(ann, bill, BillStatus.OPEN)).payment_id is None
    assert await billpay.balance(ann.wallet.address) == before


async def test_an_expired_bill_is_not_paid(billpay: Billpay) -> None:
    ann = await billpay.person()
    bill = await ann.bill(due_in=-timedelta(hours=1))
    payment = await ann.pay(bill)
    assert payment.status is PaymentStatus.FAILED
    assert payment.reason is not None
    assert "has expired. Nothing was taken from your wallet." in payment.reason
    assert (await ann.read_bill(bill)).status is BillStatus.OPEN
    assert not billpay.way.submitted


async def test_a_paid_bill_is_not_paid_again(billpay: Billpay) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    bill = await ann.bill()
    first = await ann.pay(bill)
    after = await billpay.balance(ann.wallet.address)
    second = await ann.pay(bill)
    assert second.status is PaymentStatus.FAILED
    assert second.reason == "This bill has been paid already. Nothing was taken from your wallet."
    assert await billpay.balance(ann.wallet.address) == after
    assert (await ann.read_bill(bill)).payment_id == first.id


async def test_of_many_payments_of_one_bill_at_once_exactly_one_is_made(billpay: Billpay) -> None:
    ann = await billpay.person()
    payee = await billpay.new_account()
    before = await billpay.balance(payee)
    bill = await ann.bill("5", payee=payee)
    started = await asyncio.gather(*(ann.start_payment(bill) for _ in range(12)))
    ended = await asyncio.gather(*(ann.end_of(payment) for payment in started))
    settled = [payment for payment in ended if payment.status is PaymentStatus.SETTLED]
    assert len(settled) == 1
    assert (await billpay.status_of(ann, bill, BillStatus.SETTLED)).payment_id == settled[0].id
    assert await billpay.balance(payee) - before == 5 * XLM
    reasons = {payment.reason for payment in ended if payment.status is PaymentStatus.FAILED}
    assert reasons <= {
        "Another payment of this bill is under way. Nothing was taken from your wallet.",
        "This bill has been paid already. Nothing was taken from your wallet.",
    }


async def test_a_payment_to_an_account_that_does_not_exist_costs_the_fee_and_the_wallet_goes_on(
    billpay: Billpay,
) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    before = await billpay.balance(ann.wallet.address)
    nowhere = "GDQP2KPQGKIHYJGXNUIYOMHARUARCA7DJT5FO2FFOOKY3B2WSQHG4W37"
    payment = await ann.pay(await ann.bill(payee=nowhere))
    assert payment.reason == (
        "The provider's account does not exist on the network. Ask the provider for another. Only the fee was taken."
    )
    assert before - await billpay.balance(ann.wallet.address) == BASE_FEE
    assert (await ann.pay(await ann.bill())).status is PaymentStatus.SETTLED


async def test_a_bill_of_somebody_else_cannot_be_paid(billpay: Billpay) -> None:
    ann, eve = await billpay.person(), await billpay.person()
    bill = await ann.bill()
    payment = await eve.pay(bill)
    assert (payment.status, payment.reason) == (PaymentStatus.FAILED, "There is no such bill")
    assert (await ann.read_bill(bill)).status is BillStatus.OPEN


async def test_without_a_wallet_nothing_can_be_paid(billpay: Billpay) -> None:
    with as_user(Person(billpay).token), pytest.raises(WalletMissing):
        await billpay.client(Payments).pay(NewPayment(bill_id=uuid4()))


async def test_opening_a_wallet_many_times_at_once_opens_one(billpay: Billpay) -> None:
    ann = Person(billpay)
    wallets = await asyncio.gather(*(ann.open_wallet() for _ in range(8)))
    assert len({wallet.address for wallet in wallets}) == 1
    assert (await ann.open_wallet()).balance == "10000.0000000"


async def test_a_submission_whose_answer_is_lost_is_repeated_with_the_identical_envelope(billpay: Billpay) -> None:
    ann = await billpay.person()
    billpay.way.lose_answer = lambda number: number <= 1
    payment = await ann.pay(await ann.bill())
    assert payment.status is PaymentStatus.SETTLED
    assert len(set(billpay.way.submitted)) == 1
    assert [row.state for row in await envelopes(billpay, ann)] == ["applied"]


async def test_a_submission_that_is_lost_is_repeated_with_the_identical_envelope(billpay: Billpay) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    before = await billpay.balance(ann.wallet.address)
    billpay.way.lose_request = lambda number: number <= 2
    payment = await ann.pay(await ann.bill("7"))
    assert payment.status is PaymentStatus.SETTLED
    assert len(billpay.way.submitted) == 3
    assert len(set(billpay.way.submitted)) == 1
    assert before - await billpay.balance(ann.wallet.address) == 7 * XLM + BASE_FEE


async def test_a_new_envelope_is_signed_only_after_a_ledger_has_passed_the_first_ones_time_bound(
    billpay: Billpay,
) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    before = await billpay.balance(ann.wallet.address)
    lost: set[str] = set()

    def lose_the_first_envelope(_: int) -> bool:
        lost.add(billpay.way.submitted[0])
        return billpay.way.submitted[-1] in lost

    billpay.way.lose_request = lose_the_first_envelope
    payment = await ann.pay(await ann.bill("7"))
    assert payment.status is PaymentStatus.SETTLED
    first, second = await envelopes(billpay, ann)
    assert (first.state, second.state) == ("expired", "applied")
    assert first.sequence == second.sequence
    assert first.max_time < second.created_at.timestamp()
    assert billpay.way.submitted.count(billpay.way.submitted[0]) == first.attempts > 1
    assert before - await billpay.balance(ann.wallet.address) == 7 * XLM + BASE_FEE


async def test_an_envelope_that_was_applied_unseen_is_found_by_its_hash(billpay: Billpay) -> None:
    ann = await billpay.person()
    assert ann.wallet is not None
    before = await billpay.balance(ann.wallet.address)
    billpay.way.lose_answer = lambda _: True
    payment = await ann.pay(await ann.bill("7"))
    assert payment.status is PaymentStatus.SETTLED
    assert before - await billpay.balance(ann.wallet.address) == 7 * XLM + BASE_FEE


@pytest.mark.slow
async def test_fifty_payments_from_five_wallets_conserve_money(billpay: Billpay) -> None:
    people = [await billpay.person() for _ in range(5)]
    payee = await billpay.new_account()
    before = await billpay.balance(payee)
    # Now and then an answer or a request is lost on the way.
    billpay.way.lose_answer = lambda number: number % 7 == 0
    billpay.way.lose_request = lambda number: number % 11 == 0

    async def pays(person: Person, amount: int) -> PaymentStatus:
        return (await person.pay(await person.bill(str(amount), payee=payee))).status

    amounts = [(person, amount) for person in people for amount in range(1, 11)]
    ended = await asyncio.gather(*(pays(person, amount) for person, amount in amounts))
    assert ended == [PaymentStatus.SETTLED] * 50
    assert await billpay.balance(payee) - before == 5 * 55 * XLM
    for person in people:
        assert person.wallet is not None
        assert await billpay.balance(person.wallet.address) == 10_000 * XLM - 55 * XLM - 10 * BASE_FEE
    assert await billpay.all_money() == TOTAL_COINS
    states = [row.state for row in await envelopes(billpay, *people)]
    assert states.count("applied") == 50
    assert "open" not in states
