"""The sandbox ledger as a service: Horizon's endpoints as inline routes, and the node behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from microkit import ANYONE, Service
from microkit.db import Database
from reference.billpay.ledger import handlers
from reference.billpay.ledger.node import Node
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.ledger.tables import Base

service = Service(
    "ledger",
    port=3100,
    settings=LedgerSettings,
    tables=Base.metadata,
    migrations=Path(__file__).parent / "migrations",
    title="Sandbox ledger",
)


@service.resource
async def node(database: Database, settings: LedgerSettings) -> AsyncIterator[Node]:
    """Closes ledgers for as long as the service runs."""
    running = Node(database, settings)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


# As on Horizon, nobody logs in: what moves money is the signature on an envelope.
service.get("/", allow=ANYONE)(handlers.root)
service.get("/accounts/{account_id}", allow=ANYONE)(handlers.read_account)
service.get("/ledgers", allow=ANYONE)(handlers.list_ledgers)
service.get("/ledgers/{sequence}", allow=ANYONE)(handlers.read_ledger)
service.get("/fee_stats", allow=ANYONE)(handlers.fee_stats)
service.post("/transactions", allow=ANYONE)(handlers.submit_transaction)
service.get("/transactions/{hash}", allow=ANYONE)(handlers.read_transaction)
service.get("/friendbot", allow=ANYONE)(handlers.friendbot)
