"""Secrets are shown nowhere, weak ones are refused, and production refuses what is only safe on a laptop."""

from __future__ import annotations

import pickle
import traceback
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretBytes, SecretStr, ValidationError
from rich.console import Console

from microkit.errors import ConfigurationError
from microkit.settings import SecretUrl, ServiceSettings, describe, load

STRONG = "q7Yx-2mPz_9Kd0Lw4RtB"
PASSWORD = "hunter2-of-the-database"
DATABASE = f"postgresql+asyncpg://billing:{PASSWORD}@db/billing"


class Settings(ServiceSettings):
    wallet_key: SecretStr = SecretStr(STRONG)
    pepper: SecretBytes = SecretBytes(STRONG.encode())
    smtp_password: str = "sm7p-password-in-clear"
    webhooks: dict[str, str] = Field(default_factory=dict)
    upstream: str = ""
    tokens: list[str] = Field(default_factory=list)


SECRETS = {
    "BILLING_DATABASE_URL": DATABASE,
    "BILLING_BUS_URL": "redis://:bu5-password@redis:6379/0",
    "BILLING_WALLET_KEY": STRONG,
    "BILLING_PEPPER": "p3pper-Of-The-House-77",
    "BILLING_SMTP_PASSWORD": "sm7p-password-in-clear",
    "BILLING_WEBHOOKS": '{"token": "w3bhook-token", "url": "https://u:ur1-password@host/"}',
    "BILLING_UPSTREAM": "http://user:up5tream-password@host/",
    "BILLING_TOKENS": "t0ken-one,t0ken-two",
    "BILLING_AUTH_SERVICE_KEY": '{"kty": "OKP", "d": "priv4te-part"}',
}
HIDDEN = (
    *(
        PASSWORD,
        "bu5-password",
        STRONG,
        "p3pper",
        "sm7p-password",
        "w3bhook-token",
        "ur1-password",
        "up5tream-password",
    ),
    *("t0ken-one", "t0ken-two", "priv4te-part"),
)


def read(environ: dict[str, str], **overrides: Any) -> Settings:
    return load(Settings, "billing", environ=environ, env_file=None, overrides=overrides)


def assert_hidden(text: str) -> None:
    for secret in HIDDEN:
        assert secret not in text


def test_secrets_are_in_no_form_of_the_settings_that_is_printed() -> None:
    settings = read(SECRETS)
    assert settings.wallet_key.get_secret_value() == STRONG
    assert settings.database_url.get_secret_value() == DATABASE
    printed = StringIO()
    Console(file=printed, width=4000).print(settings)
    for text in (repr(settings), str(settings), f"{settings}", f"{[settings]!s}", printed.getvalue()):
        assert_hidden(text)
    assert "postgresql+asyncpg://billing:***@db/billing" in repr(settings)


def test_secrets_are_in_no_description() -> None:
    described = describe(read(SECRETS))
    assert_hidden(repr(described))
    shown = {setting.key: setting.value for setting in described}
    assert shown["BILLING_DATABASE_URL"] == "postgresql+asyncpg://billing:***@db/billing"
    assert shown["BILLING_WALLET_KEY"] == "***"
    assert shown["BILLING_SMTP_PASSWORD"] == "***"


@pytest.mark.parametrize("value", [DATABASE, "postgresql://u:p/w:d@h/d", "x://a:b/c@d@host/db"])
def test_a_url_is_shown_without_its_password(value: str) -> None:
    url = SecretUrl(value)
    for text in (str(url), repr(url), f"{url}"):
        assert "***@" in text
        assert PASSWORD not in text
        assert "p/w:d" not in text
        assert "b/c@d" not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("sqlite+aiosqlite:///a.db", "sqlite+aiosqlite:///a.db"),
        ("redis://user@redis", "redis://user@redis"),
        ("redis://redis?password=hunter2", "redis://redis?password=***"),
        (f"redis://:{'p' * 5000}@redis", "redis://:***@redis"),
        ("redis://u:123/4@redis", "redis://u:***@redis"),
    ],
)
def test_the_rest_of_a_url_is_shown(value: str, shown: str) -> None:
    assert str(SecretUrl(value)) == shown


@pytest.mark.parametrize("key", sorted(SECRETS))
def test_a_value_that_is_refused_is_not_shown_in_the_refusal(key: str) -> None:
    environ = {**SECRETS, "BILLING_ENVIRONMENT": "nowhere", "BILLING_DATABASE_URL": f"mysql://u:{PASSWORD}@h/d"}
    environ[key] = {"BILLING_WEBHOOKS": '{"token": "w3bhook-token"', "BILLING_TOKENS": '[1, "t0ken-one"]'}.get(
        key, environ[key]
    )
    with pytest.raises(ConfigurationError) as caught:
        read(environ)
    error = caught.value
    assert_hidden("".join(traceback.format_exception(error)))
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_url_that_is_refused_is_shown_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"BILLING_DATABASE_URL": "mysql://u:123/hunter2@h/d"})
    assert "BILLING_DATABASE_URL=mysql://u:***@h/d" in str(caught.value)


def test_a_refusal_of_settings_made_directly_does_not_show_the_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(database_url=SecretUrl(f"mysql://u:{PASSWORD}@h/d"), wallet_key=SecretStr("changeme"))
    assert_hidden(str(caught.value))


WEAK = [
    "changeme",
    "change-me",
    "ChangeMe123456789012345",
    "secret",
    "password",
    "your_secret_key_goes_here",
    "short",
    "",
]
WEAK += ["aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababab", "Sh0rt-of-it-15ch"[:15], "replace-me-please-replace-me"]


@pytest.mark.parametrize("secret", WEAK)
def test_a_weak_secret_is_refused(secret: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"BILLING_WALLET_KEY": secret})
    assert str(caught.value).startswith("BILLING_WALLET_KEY=")
    assert str(caught.value).startswith("BILLING_WALLET_KEY=*** " if secret else "BILLING_WALLET_KEY=")


def test_a_weak_secret_of_bytes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BILLING_PEPPER"):
        read({"BILLING_PEPPER": "changeme"})


class Lenient(ServiceSettings):
    smtp_password: SecretStr = Field(SecretStr("abc12"), min_length=4)


def test_a_field_may_allow_shorter_secrets_but_no_placeholders() -> None:
    def read(secret: str) -> Lenient:
        return load(Lenient, "billing", environ={"BILLING_SMTP_PASSWORD": secret}, env_file=None)

    assert read("x9k2").smtp_password.get_secret_value() == "x9k2"
    for secret in ("x9k", "changeme", "password"):
        with pytest.raises(ConfigurationError, match="BILLING_SMTP_PASSWORD"):
            read(secret)


PRODUCTION = {"BILLING_ENVIRONMENT": "production", "BILLING_ALLOWED_HOSTS": "billing.example.com"}


def test_production_starts_with_what_is_real() -> None:
    settings = read({**PRODUCTION, "BILLING_TRUSTED_PROXIES": "10.0.0.0/8,fd00::/8,192.168.1.1"})
    assert settings.environment == "production"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("BILLING_ALLOWED_HOSTS", "*"),
        ("BILLING_ALLOWED_HOSTS", "billing.example.com,*"),
        ("BILLING_TRUSTED_PROXIES", "*"),
        ("BILLING_TRUSTED_PROXIES", "10.0.0.1,*"),
        ("BILLING_DATABASE_URL", "postgresql+asyncpg://billing:changeme@db/billing"),
        ("BILLING_DATABASE_URL", "postgresql+asyncpg://postgres:postgres@db/billing"),
        ("BILLING_BUS_URL", "redis://:password@redis"),
    ],
)
def test_production_refuses_what_development_allows(key: str, value: str) -> None:
    read({key: value})
    with pytest.raises(ConfigurationError) as caught:
        read({**PRODUCTION, key: value})
    assert str(caught.value).startswith(f"{key}=")


def test_production_must_be_told_its_host_names() -> None:
    with pytest.raises(ConfigurationError, match="BILLING_ALLOWED_HOSTS"):
        read({"BILLING_ENVIRONMENT": "production"})


def test_the_otlp_exporter_needs_an_endpoint() -> None:
    with pytest.raises(ConfigurationError, match="BILLING_OTLP_ENDPOINT"):
        read({"BILLING_TRACE_EXPORTER": "otlp"})
    read({"BILLING_TRACE_EXPORTER": "otlp", "BILLING_OTLP_ENDPOINT": "http://collector:4318"})


def test_an_issuer_needs_an_audience() -> None:
    with pytest.raises(ConfigurationError, match="BILLING_AUTH_AUDIENCE"):
        read({"BILLING_AUTH_ISSUER": "https://login.example.com"})


def test_a_secret_in_the_secrets_directory_loses_its_line_break(tmp_path: Path) -> None:
    (tmp_path / "billing_wallet_key").write_text(f"{STRONG}\n")
    assert read({"BILLING_SECRETS_DIR": str(tmp_path)}).wallet_key.get_secret_value() == STRONG


def test_settings_can_be_sent_to_another_process() -> None:
    settings = read(SECRETS)
    assert pickle.loads(pickle.dumps(settings)) == settings
