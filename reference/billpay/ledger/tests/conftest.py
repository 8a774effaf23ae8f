"""Real key pairs and real envelopes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from hashlib import sha256

import pytest
from stellar_sdk import Account, Asset, Keypair, TransactionBuilder

from microkit.db import Database
from microkit.settings import load
from reference.billpay.contracts.ledger import SANDBOX_PASSPHRASE
from reference.billpay.ledger.node import Node
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.ledger.tables import Base

Pay = Callable[..., str]


@pytest.fixture
def keys() -> Callable[[str], Keypair]:
    """A key pair by name, the same each time."""
    return lambda name: Keypair.from_raw_ed25519_seed(sha256(name.encode()).digest())


@pytest.fixture
def pay() -> Pay:
    """A signed payment, as any wallet would build it."""

    def build(
        source: Keypair,
        sequence: int,
        destination: str,
        amount: str,
        *,
        passphrase: str = SANDBOX_PASSPHRASE,
        bounds: tuple[int, int] = (0, 0),
        signers: tuple[Keypair, ...] | None = None,
        base_fee: int = 100,
        memo: str | None = None,
    ) -> str:
        builder = TransactionBuilder(Account(source.public_key, sequence - 1), passphrase, base_fee, v1=True)
        builder.append_payment_op(destination, Asset.native(), amount).add_time_bounds(*bounds)
        if memo is not None:
            builder.add_text_memo(memo)
        envelope = builder.build()
        for signer in (source,) if signers is None else signers:
            envelope.sign(signer)
        return envelope.to_xdr()

    return build


@pytest.fixture
async def node(anyio_backend: str, database: Database) -> AsyncIterator[Node]:
    """A node that closes ledgers quickly, on both databases in turn."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    quick = {"close_interval": 0.02, "idle_interval": 0.1, "submit_timeout": 5.0}
    settings = load(LedgerSettings, "ledger", overrides=quick)
    running = Node(database, settings)
    await running.start()
    yield running
    await running.stop()
