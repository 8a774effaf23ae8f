"""The ledger's settings (``LEDGER_…``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microkit.settings import Duration, ServiceSettings
from reference.billpay.contracts.ledger import SANDBOX_PASSPHRASE


class LedgerSettings(ServiceSettings):
    network_passphrase: Annotated[
        str, Field(min_length=10, description="Signed into every envelope; unlike any other network's")
    ] = SANDBOX_PASSPHRASE
    close_interval: Annotated[Duration, Field(gt=0, le=60, description="Between ledgers while transactions wait")] = 1.0
    idle_interval: Annotated[Duration, Field(gt=0, le=60, description="Between ledgers while none waits")] = 5.0
    submit_timeout: Annotated[
        Duration, Field(gt=0, description="How long POST /transactions waits for its ledger before it answers 504")
    ] = 8.0
    friendbot_amount: Annotated[
        int, Field(ge=1, le=1_000_000, description="XLM that friendbot opens an account with")
    ] = 10_000
