"""The way to ``stellar``, which loads stellar-sdk, and the key that seals wallets."""

from __future__ import annotations

import asyncio
import os
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast

from sqlalchemy.engine import make_url

from microkit.errors import ConfigurationError
from reference.billpay.payment.domain import NewKey, Order, Signed
from reference.billpay.payment.settings import PaymentSettings
from reference.billpay.payment.vault import Vault, new_key, parse_key

_EXAMPLE: Final = "openssl rand -base64 32"


class Stellar(Protocol):
    """What ``reference.billpay.payment.stellar`` offers."""

    def new_key(self) -> NewKey: ...

    def sign_payment(
        self, order: Order, seed: bytes, *, passphrase: str, sequence: int, fee: int, max_time: int
    ) -> Signed: ...


async def load_stellar() -> Stellar:
    """Imports stellar-sdk in a thread: two thirds of a second that starting need not take. At once where it is done."""
    module = await asyncio.to_thread(import_module, "reference.billpay.payment.stellar")
    return cast("Stellar", module)


def open_vault(settings: PaymentSettings) -> Vault:
    """The vault with the keys of the settings; in development with one that is made and kept beside the database.

    Raises:
        ConfigurationError: a key is missing or is none.
    """
    if settings.wallet_key is not None:
        given = [settings.wallet_key, *settings.wallet_old_keys]
        return Vault([_parsed("PAYMENT_WALLET_KEY", key.get_secret_value()) for key in given])
    if settings.environment == "production":
        raise ConfigurationError(
            f"PAYMENT_WALLET_KEY is missing: it seals the seeds of wallets. An example is the output of: {_EXAMPLE}"
        )
    return Vault([_parsed("the wallet key", _kept_key(_beside(settings)))])


def _parsed(name: str, text: str) -> bytes:
    try:
        return parse_key(text.strip())
    except ValueError as error:
        raise ConfigurationError(
            f"{name} {error}; it is 32 random bytes in base64, the output of: {_EXAMPLE}"
        ) from None


def _beside(settings: PaymentSettings) -> Path:
    """Where the development key stays: with the wallets it seals, and not in the same file."""
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(url.database).with_suffix(".wallet-key")
    return Path(".microkit") / "payment.wallet-key"


def _kept_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(new_key())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    return path.read_text("ascii")
