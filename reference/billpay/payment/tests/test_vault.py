"""Seeds at rest, and the key that seals them."""

from __future__ import annotations

import stat
from base64 import b64encode
from pathlib import Path

import pytest

from microkit.errors import ConfigurationError
from microkit.settings import load
from reference.billpay.payment.keys import open_vault
from reference.billpay.payment.settings import PaymentSettings
from reference.billpay.payment.vault import CannotUnseal, Vault, new_key, parse_key

SEED = bytes(range(32))


def vault(*keys: str) -> Vault:
    return Vault([parse_key(key) for key in keys])


def settings(folder: Path, **changes: object) -> PaymentSettings:
    database = {"database_url": f"sqlite+aiosqlite:///{folder / 'payment.db'}"}
    return load(PaymentSettings, "payment", overrides={**database, **changes}, environ={}, env_file=None)


def test_what_is_sealed_for_an_address_is_opened_for_it() -> None:
    box = vault(new_key())
    assert box.unseal(box.seal(SEED, "GANN"), "GANN") == SEED


def test_a_sealed_seed_does_not_show_the_seed_and_is_different_each_time() -> None:
    box = vault(new_key())
    first, second = box.seal(SEED, "GANN"), box.seal(SEED, "GANN")
    assert SEED not in first
    assert first != second


def test_a_seed_copied_into_another_wallet_cannot_be_opened() -> None:
    box = vault(new_key())
    with pytest.raises(CannotUnseal):
        box.unseal(box.seal(SEED, "GANN"), "GEVE")


def test_each_changed_byte_is_noticed() -> None:
    box = vault(new_key())
    sealed = box.seal(SEED, "GANN")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(CannotUnseal):
            box.unseal(bytes(changed), "GANN")


def test_an_old_key_still_opens_and_the_new_one_seals() -> None:
    old, new = new_key(), new_key()
    sealed = vault(old).seal(SEED, "GANN")
    rotated = vault(new, old)
    assert rotated.unseal(sealed, "GANN") == SEED
    assert vault(new).unseal(rotated.seal(SEED, "GANN"), "GANN") == SEED
    with pytest.raises(CannotUnseal):
        vault(new).unseal(sealed, "GANN")


@pytest.mark.parametrize(
    "text", ["", "changeme", b64encode(bytes(31)).decode(), b64encode(bytes(32)).decode(), "é" * 44]
)
def test_a_key_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|bytes|random"):
        parse_key(text)


def test_in_development_a_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    sealed = open_vault(settings(tmp_path)).seal(SEED, "GANN")
    assert open_vault(settings(tmp_path)).unseal(sealed, "GANN") == SEED
    kept = tmp_path / "payment.wallet-key"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_the_key_of_the_settings_is_used_where_there_is_one(tmp_path: Path) -> None:
    key, old = new_key(), new_key()
    sealed = vault(old).seal(SEED, "GANN")
    assert open_vault(settings(tmp_path, wallet_key=key, wallet_old_keys=[old])).unseal(sealed, "GANN") == SEED
    assert not list(tmp_path.iterdir())


def test_in_production_a_missing_key_is_named(tmp_path: Path) -> None:
    production = settings(tmp_path).model_copy(update={"environment": "production"})
    with pytest.raises(ConfigurationError, match="PAYMENT_WALLET_KEY"):
        open_vault(production)


def test_a_key_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    short = b64encode(bytes(range(20))).decode()
    with pytest.raises(ConfigurationError, match="PAYMENT_WALLET_KEY has 20 bytes, not 32"):
        open_vault(settings(tmp_path, wallet_key=short))
