"""The envelopes that are signed."""

from __future__ import annotations

from uuid import uuid4

import pytest
from stellar_sdk import Keypair, Payment, TextMemo, TransactionEnvelope

from reference.billpay.contracts.ledger import DEMO_PROVIDERS, SANDBOX_PASSPHRASE
from reference.billpay.payment import stellar
from reference.billpay.payment.domain import Order

PAYEE = DEMO_PROVIDERS["Eko Gas"]


def order(amount: int = 425_000_001, payee: str = PAYEE) -> Order:
    return Order(uuid4(), "ann", payee, amount, "INV-2026-0117")


def test_an_envelope_holds_what_was_ordered_and_a_valid_signature() -> None:
    key = stellar.new_key()
    signed = stellar.sign_payment(
        order(), key.seed, passphrase=SANDBOX_PASSPHRASE, sequence=8, fee=10_000, max_time=1_700_000_000
    )
    envelope = TransactionEnvelope.from_xdr(signed.xdr, SANDBOX_PASSPHRASE)
    transaction = envelope.transaction
    assert signed.hash == envelope.hash_hex()
    assert (transaction.source.account_id, transaction.sequence, transaction.fee) == (key.address, 8, 10_000)
    assert transaction.memo == TextMemo("INV-2026-0117")
    assert transaction.preconditions is not None
    assert transaction.preconditions.time_bounds is not None
    assert transaction.preconditions.time_bounds.max_time == 1_700_000_000
    (payment,) = transaction.operations
    assert isinstance(payment, Payment)
    assert (payment.destination.account_id, payment.amount) == (PAYEE, "42.5000001")
    Keypair.from_public_key(key.address).verify(envelope.hash(), envelope.signatures[0].signature)


@pytest.mark.parametrize("amount", [1, 10_000_000, 2**53 + 1, 10**17])
def test_an_amount_is_exact_to_the_stroop(amount: int) -> None:
    key = stellar.new_key()
    signed = stellar.sign_payment(
        order(amount), key.seed, passphrase=SANDBOX_PASSPHRASE, sequence=8, fee=100, max_time=0
    )
    (payment,) = TransactionEnvelope.from_xdr(signed.xdr, SANDBOX_PASSPHRASE).transaction.operations
    assert isinstance(payment, Payment)
    assert Payment.to_xdr_amount(payment.amount) == amount


def test_an_address_with_a_mistake_is_never_paid() -> None:
    key = stellar.new_key()
    with pytest.raises(ValueError, match="not a valid account"):
        stellar.sign_payment(
            order(payee=PAYEE[:-1] + "A"), key.seed, passphrase=SANDBOX_PASSPHRASE, sequence=8, fee=100, max_time=0
        )


def test_a_seed_is_not_shown() -> None:
    key = stellar.new_key()
    assert repr(key.seed) not in repr(key)
