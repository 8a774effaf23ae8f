"""Payment's settings (``PAYMENT_…``)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, SecretStr, model_validator

from microkit.settings import Duration, ServiceSettings
from reference.billpay.contracts.ledger import SANDBOX_PASSPHRASE


class PaymentSettings(ServiceSettings):
    horizon_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://",
            description="Horizon of the network; without it, in development, the system's sandbox ledger is used",
            examples=["https://horizon-testnet.stellar.org"],
        ),
    ] = None
    network_passphrase: Annotated[
        str,
        Field(
            min_length=10,
            description="The network's name, signed into every envelope",
            examples=["Test SDF Network ; September 2015"],
        ),
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

    @model_validator(mode="after")
    def _real_network(self) -> Self:
        if self.environment != "production":
            return self
        if self.horizon_url is None:
            raise ValueError(
                "horizon_url is missing: in production nobody pays on the sandbox ledger. "
                "An example: horizon_url=https://horizon.stellar.org"
            )
        if self.network_passphrase == SANDBOX_PASSPHRASE:
            raise ValueError(
                "network_passphrase is the sandbox's: in production it names the network that is paid on. "
                "An example: 'Public Global Stellar Network ; September 2015'"
            )
        return self
