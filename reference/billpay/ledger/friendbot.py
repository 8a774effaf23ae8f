"""Friendbot: whoever asks is given money to try things with. Loads stellar-sdk, see ``codec``."""

from __future__ import annotations

from decimal import Decimal
from hashlib import sha256

from stellar_sdk import Account, Asset, Keypair, TransactionBuilder

from reference.billpay.ledger.domain import BASE_FEE


def key() -> Keypair:
    """Friendbot's key pair. Its seed is public, as the demo providers' are."""
    return Keypair.from_raw_ed25519_seed(sha256(b"billpay sandbox friendbot").digest())


def gift(passphrase: str, address: str, *, exists: bool, sequence: int, stroops: int) -> str:
    """The envelope described at ``Codec.gift``."""
    signer = key()
    builder = TransactionBuilder(Account(signer.public_key, sequence), passphrase, base_fee=BASE_FEE, v1=True)
    amount = Decimal(stroops).scaleb(-7)
    if exists:
        builder.append_payment_op(address, Asset.native(), amount)
    else:
        builder.append_create_account_op(address, amount)
    # No time bounds, as friendbot's own minions have none: nobody rebuilds a gift.
    envelope = builder.add_time_bounds(0, 0).build()
    envelope.sign(signer)
    return envelope.to_xdr()
