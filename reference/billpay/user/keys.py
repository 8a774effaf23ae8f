"""The keys that access tokens are signed with."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from microkit.auth import SigningKey
from microkit.auth.keys import read_json
from microkit.db import Database, Transaction
from microkit.errors import ConfigurationError
from reference.billpay.user.settings import UserSettings
from reference.billpay.user.tables import SigningKeyRow


async def signing_keys(settings: UserSettings, database: Database) -> list[SigningKey]:
    """The keys of the settings; in development the one of the database, made there when it is first asked for.

    Raises:
        ConfigurationError: the settings hold something that is no set of private keys.
    """
    if settings.signing_keys is None:
        return [SigningKey.read(await database.run(_development_key))]
    try:
        return read_signing_keys(settings.signing_keys.get_secret_value())
    except ConfigurationError as error:
        raise ConfigurationError(f"USER_SIGNING_KEYS: {error}") from None


def read_signing_keys(source: str) -> list[SigningKey]:
    """The private keys of a JWKS in ``source``, in its order."""
    document = read_json(source)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError('there are no keys; an example: {"keys": [{"kty": "OKP", "crv": "Ed25519", …}]}')
    return [SigningKey.of(jwk) for jwk in listed]


async def _development_key(tx: Transaction) -> str:
    insert = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    made = SigningKey.generate().private_jwk()
    await tx.execute(insert(SigningKeyRow).values(slot=1, private_jwk=made).on_conflict_do_nothing())
    found = await tx.scalar(select(SigningKeyRow.private_jwk).where(SigningKeyRow.slot == 1))
    return str(found)
