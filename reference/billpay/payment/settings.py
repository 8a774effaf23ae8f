"""Payment's settings (``PAYMENT_…``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from microkit.settings import Duration, ServiceSettings
from reference.billpay.contracts.ledger import SANDBOX_PASSPHRASE


class PaymentSettings(ServiceSettings):
    horizon_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="Such as https://horizon-testnet.stellar.org; without it the system's sandbox ledger is used",
        ),
    ] = None
    network_passphrase: Annotated[
        str, Field(min_length=10, description="The network's name, signed into every envelope")
    ] = SANDBOX_PASSPHRASE
    horizon_timeout: Annotated[Duration, Field(gt=0, description="Of a question to Horizon")] = 5.0
    submit_timeout: Annotated[
        Duration, Field(gt=0, description="Of a submission, which Horizon answers when a ledger has taken it")
    ] = 20.0
    payment_window: Annotated[
        Duration, Field(ge=1, le=600, description="A ledger closed so much later takes an envelope no more")
    ] = 60.0
    history_lag: Annotated[
        Duration, Field(ge=0, description="By how much Horizon's history may be older than its accounts")
    ] = 30.0
    max_fee: Annotated[int, Field(ge=100, description="Offered for an operation, in stroops; less is charged")] = 10_000
    wallet_key: Annotated[
        SecretStr | None,
        Field(description="Seals the seeds of wallets: 32 random bytes in base64. In development one is made and kept"),
    ] = None
    wallet_old_keys: Annotated[
        tuple[SecretStr, ...], Field(description="Keys before it, that some wallets are still sealed with")
    ] = ()
