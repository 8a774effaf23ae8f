"""Keys and envelopes, by stellar-sdk. Imported by ``keys.load_stellar`` when the first is needed."""

from __future__ import annotations

from decimal import Decimal

from stellar_sdk import Account, Asset, Keypair, TransactionBuilder

from reference.billpay.payment.domain import NewKey, Order, Signed


def new_key() -> NewKey:
    """A fresh key pair."""
    pair = Keypair.random()
    return NewKey(pair.public_key, pair.raw_secret_key())


def sign_payment(order: Order, seed: bytes, *, passphrase: str, sequence: int, fee: int, max_time: int) -> Signed:
    """A payment from the account that ``seed`` signs for.

    ``sequence`` is the transaction's own, ``fee`` the most that is offered, in stroops, and ``max_time`` the latest
    close time of a ledger that may take it, in seconds since 1970.
    """
    pair = Keypair.from_raw_ed25519_seed(seed)
    builder = TransactionBuilder(Account(pair.public_key, sequence - 1), passphrase, base_fee=fee, v1=True)
    builder.append_payment_op(order.payee, Asset.native(), Decimal(order.amount).scaleb(-7))
    envelope = builder.add_text_memo(order.memo).add_time_bounds(0, max_time).build()
    envelope.sign(pair)
    return Signed(envelope.to_xdr(), envelope.hash_hex())
