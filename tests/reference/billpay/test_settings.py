"""What billpay's services say about their settings, and what production asks of them."""

from __future__ import annotations

import pytest

from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings, load
from reference.billpay.billing.settings import BillingSettings
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.payment.settings import PaymentSettings
from reference.billpay.user.settings import UserSettings

ALL: list[type[ServiceSettings]] = [ServiceSettings, BillingSettings, LedgerSettings, PaymentSettings, UserSettings]
KEY = "wCq3YpTTk1cWmTQ1kY7gq0xvZ8r5n2b4sD6fG8hJ0kA="
PRODUCTION = {"PAYMENT_ENVIRONMENT": "production", "PAYMENT_ALLOWED_HOSTS": "pay.example", "PAYMENT_WALLET_KEY": KEY}
HORIZON = {"PAYMENT_HORIZON_URL": "https://horizon.stellar.org"}
PUBLIC = {"PAYMENT_NETWORK_PASSPHRASE": "Public Global Stellar Network ; September 2015"}


def message(cls: type[ServiceSettings], service: str, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(cls, service, environ=environ, env_file=None)
    return str(caught.value)


@pytest.mark.parametrize("cls", ALL)
def test_every_setting_says_what_it_is(cls: type[ServiceSettings]) -> None:
    assert [name for name, info in cls.model_fields.items() if not info.description] == []


def test_production_demands_a_horizon_and_a_network_that_is_not_the_sandboxs() -> None:
    missing = message(PaymentSettings, "payment", PRODUCTION)
    assert "PAYMENT_HORIZON_URL is missing" in missing
    assert "An example: PAYMENT_HORIZON_URL=https://horizon.stellar.org" in missing

    sandbox = message(PaymentSettings, "payment", {**PRODUCTION, **HORIZON})
    assert "PAYMENT_NETWORK_PASSPHRASE is the sandbox's" in sandbox
    assert "An example: 'Public Global Stellar Network ; September 2015'" in sandbox

    settings = load(PaymentSettings, "payment", environ={**PRODUCTION, **HORIZON, **PUBLIC}, env_file=None)
    assert settings.environment == "production"


def test_a_url_of_another_kind_is_answered_with_a_real_example() -> None:
    told = message(PaymentSettings, "payment", {"PAYMENT_HORIZON_URL": "ftp://horizon"})
    assert told == (
        "PAYMENT_HORIZON_URL=ftp://horizon (environment): has not the form that it must have. "
        "An example: PAYMENT_HORIZON_URL=https://horizon-testnet.stellar.org"
    )


def test_a_weak_key_among_the_former_ones_is_refused() -> None:
    told = message(PaymentSettings, "payment", {"PAYMENT_WALLET_OLD_KEYS": '["changeme"]'})
    assert "PAYMENT_WALLET_OLD_KEYS" in told
    assert "is a placeholder that everybody knows" in told
    assert "changeme" not in told


def test_a_rule_about_several_settings_names_their_keys() -> None:
    told = message(UserSettings, "user", {"USER_ENVIRONMENT": "production", "USER_ALLOWED_HOSTS": "user.example"})
    assert "USER_SIGNING_KEYS is missing" in told
    assert "signing_keys" not in told
    told = message(UserSettings, "user", {"USER_ADMIN_EMAIL": "ada@billpay.example"})
    assert "USER_ADMIN_EMAIL and USER_ADMIN_PASSWORD belong together" in told
