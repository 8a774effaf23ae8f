"""Where settings are read from, and what stops the start."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import BaseModel, Field, SecretStr, model_validator

from microkit.errors import ConfigurationError
from microkit.settings import Duration, ServiceSettings, Size, describe, load

STRONG = "q7Yx-2mPz_9Kd0Lw4RtB"


def read(environ: Mapping[str, str] | None = None, **options: Any) -> ServiceSettings:
    return load(ServiceSettings, "billing", environ=environ or {}, **{"env_file": None, **options})


def refusal(environ: Mapping[str, str], cls: type[ServiceSettings] = ServiceSettings, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(cls, "billing", environ=environ, **{"env_file": None, **options})
    return str(caught.value)


def test_a_service_that_is_told_nothing_has_its_own_database_file() -> None:
    settings = read()
    assert settings.database_url.get_secret_value() == "sqlite+aiosqlite:///.microkit/billing.db"
    assert settings.environment == "development"


def test_a_service_reads_the_variables_with_its_prefix_and_no_others() -> None:
    settings = read({"BILLING_PORT": "3003", "PAYMENT_PORT": "9", "PORT": "10", "HOST": "0.0.0.0"})
    assert settings.port == 3003
    assert settings.host == "127.0.0.1"


def test_a_dash_in_the_name_is_an_underscore_in_the_prefix() -> None:
    settings = load(ServiceSettings, "pay-bill", environ={"PAY_BILL_PORT": "1234"}, env_file=None)
    assert settings.port == 1234
    assert describe(settings)[0].key == "PAY_BILL_ENVIRONMENT"


def test_the_process_environment_is_read_where_no_other_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILLING_PORT", "4004")
    assert load(ServiceSettings, "billing", env_file=None).port == 4004


def test_settings_made_directly_read_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "4004")
    monkeypatch.setenv("SERVICE_PORT", "4005")
    assert ServiceSettings().port == 8000


def test_the_strongest_place_counts(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("billing_port", "billing_host", "billing_bus_url", "billing_log_level", "billing_body_limit"):
        (secrets / name).write_text(
            {"port": "1", "host": "secret", "bus_url": "memory://secret", "log_level": "ERROR", "body_limit": "1KiB"}[
                name.removeprefix("billing_")
            ]
        )
    env_file = tmp_path / ".env"
    env_file.write_text(
        "BILLING_PORT=2\nBILLING_HOST=dotenv\nBILLING_BUS_URL=memory://dotenv\nBILLING_LOG_LEVEL=DEBUG\n"
    )
    settings = load(
        ServiceSettings,
        "billing",
        environ={
            "BILLING_SECRETS_DIR": str(secrets),
            "BILLING_PORT": "3",
            "BILLING_HOST": "environ",
            "BILLING_BUS_URL": "memory://environ",
        },
        env_file=env_file,
        overrides={"port": 4, "host": "override"},
        defaults={"port": 5, "request_timeout": "7s"},
    )
    assert (settings.port, settings.host) == (4, "override")
    assert settings.bus_url.get_secret_value() == "memory://environ"
    assert settings.log_level == "DEBUG"
    assert settings.body_limit == 1024
    assert settings.request_timeout == 7
    sources = {setting.key: setting.source for setting in describe(settings)}
    assert sources["BILLING_PORT"] == "override"
    assert sources["BILLING_BUS_URL"] == "environment"
    assert sources["BILLING_LOG_LEVEL"] == ".env"
    assert sources["BILLING_BODY_LIMIT"] == f"secrets in {secrets}"
    assert sources["BILLING_REQUEST_TIMEOUT"] == "default"


def test_a_service_may_share_env_file_and_secrets_directory_with_others(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"PAYMENT_NOSUCH=1\nMICROKIT_SECRETS_DIR={tmp_path / 'secrets'}\n# comment\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "PAYMENT_WALLET_KEY").write_text("not mine")
    (tmp_path / "secrets" / "BILLING_PORT").write_text("3003\n")
    (tmp_path / "secrets" / "tls.crt").write_text("-----BEGIN")
    assert read(env_file=tmp_path / ".env").port == 3003


def test_a_mounted_kubernetes_secret_is_read(tmp_path: Path) -> None:
    """The kubelet mounts links into a hidden directory that it exchanges whole."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "BILLING_PORT").write_text("3003")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "BILLING_PORT").symlink_to("..data/BILLING_PORT")
    assert read({"BILLING_SECRETS_DIR": str(tmp_path)}).port == 3003


def test_the_variables_that_kubernetes_adds_for_a_service_of_the_same_name_are_no_settings() -> None:
    settings = read(
        {
            "BILLING_SERVICE_HOST": "10.0.0.11",
            "BILLING_SERVICE_PORT": "3003",
            "BILLING_SERVICE_PORT_HTTP": "3003",
            "BILLING_PORT": "tcp://10.0.0.11:3003",
            "BILLING_PORT_3003_TCP": "tcp://10.0.0.11:3003",
            "BILLING_PORT_3003_TCP_ADDR": "10.0.0.11",
            "BILLING_PORT_3003_TCP_PORT": "3003",
            "BILLING_PORT_3003_TCP_PROTO": "tcp",
            "BILLING_REPORTS_SERVICE_HOST": "10.0.0.12",
        }
    )
    assert settings.port == 8000


def test_variables_of_a_neighbour_whose_name_begins_the_same_are_no_mistake() -> None:
    environ = {"BILLING_REPORTS_PORT": "1", "BILLING_PORT": "2"}
    assert read(environ, neighbours=("billing-reports", "billing", "user")).port == 2
    assert "BILLING_REPORTS_PORT" in refusal(environ)


@pytest.mark.parametrize("place", ["environment", ".env", "secrets"])
def test_an_unknown_key_is_named_with_the_one_that_was_meant_and_an_example(place: str, tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    if place == "environment":
        environ["BILLING_DATABASE_POOL_SZIE"] = "10"
    elif place == ".env":
        (tmp_path / ".env").write_text("BILLING_DATABASE_POOL_SZIE=10\n")
    else:
        (tmp_path / "billing_database_pool_szie").write_text("10")
        environ["BILLING_SECRETS_DIR"] = str(tmp_path)
    message = refusal(environ, env_file=tmp_path / ".env")
    assert "BILLING_DATABASE_POOL_SZIE" in message
    assert place in message
    assert "did you mean BILLING_DATABASE_POOL_SIZE?" in message
    assert "BILLING_DATABASE_POOL_SIZE=10" in message


def test_an_unknown_key_that_resembles_none_is_answered_with_all_there_are() -> None:
    message = refusal({"BILLING_QQQQQQ": "10"})
    assert "BILLING_QQQQQQ" in message
    assert "BILLING_BODY_LIMIT" in message


def test_an_unknown_override_is_refused() -> None:
    assert "databse_url" in refusal({}, overrides={"databse_url": "x"})


def test_a_secret_file_without_the_prefix_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "database_url").write_text("sqlite+aiosqlite:///x.db")
    message = refusal({"BILLING_SECRETS_DIR": str(tmp_path)})
    assert "did you mean BILLING_DATABASE_URL?" in message


@pytest.mark.parametrize("key", ["BILLING_SECRETS_DIR", "MICROKIT_SECRETS_DIR"])
def test_a_secrets_directory_that_is_not_there_is_named(key: str, tmp_path: Path) -> None:
    message = refusal({key: str(tmp_path / "nowhere")})
    assert key in message
    assert "nowhere" in message


def test_files_that_are_not_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "billing_port").write_bytes(b"\xff\xfe\x00")
    (tmp_path / ".env").write_bytes(b"BILLING_HOST=\xff\xfe\n")
    message = refusal({"BILLING_SECRETS_DIR": str(tmp_path)}, env_file=tmp_path / ".env")
    assert "BILLING_PORT" in message
    assert ".env" in message


WRONG = {
    "BILLING_DATABASE_POOL_SIZE": ["0", "-1", "ten", "1.5", ""],
    "BILLING_DATABASE_MAX_OVERFLOW": ["-1"],
    "BILLING_REQUEST_TIMEOUT": ["nan", "inf", "-inf", "-1s", "-1", "0", "0s", "1y", "1 s s", "", "true"],
    "BILLING_DRAIN_DELAY": ["nan", "-5s", "soon"],
    "BILLING_BODY_LIMIT": ["0", "-1", "1XB", "1.5", "MiB", "", "1e9", "nan"],
    "BILLING_PORT": ["-1", "65536", "http", ""],
    "BILLING_HOST": [""],
    "BILLING_ENVIRONMENT": ["prod", "Production", ""],
    "BILLING_DATABASE_URL": ["", "billing.db", "postgresql://localhost/x", "mysql://localhost/x", "sqlite:///x.db"],
    "BILLING_BUS_URL": ["", "localhost:6379"],
    "BILLING_LOG_LEVEL": ["LOUD", "10"],
    "BILLING_LOG_FORMAT": ["xml"],
    "BILLING_ACCESS_LOG": ["perhaps", ""],
    "BILLING_TRACE_SAMPLING": ["nan", "inf", "1.1", "-0.1", "all"],
    "BILLING_TRACE_EXPORTER": ["jaeger"],
    "BILLING_OTLP_ENDPOINT": ["collector:4318", "ftp://collector", "http://"],
    "BILLING_ALLOWED_HOSTS": ["http://billing", "a/b", "a b", "a..b/", "bill\ning", "[]", ""],
    "BILLING_TRUSTED_PROXIES": ["proxy.internal", "10.0.0.0/33", "1.2.3"],
    "BILLING_SERVICES": ["user", "user=", "=http://x", "user=ftp://x", '{"user": 3}', '{"user": []}', "[1]", "3"],
    "BILLING_AUTH_JWKS_URL": ["user:3001/jwks", "file:///etc/passwd"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_that_does_not_fit_is_named_with_an_example(key: str, value: str) -> None:
    message = refusal({key: value})
    assert message.startswith(key)
    assert "environment" in message
    assert f"An example: {key}=" in message
    example = message.partition(f"An example: {key}=")[2]
    if example != "...":
        read({key: example})  # the example is one that works


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BILLING_NOSUCH_THING=1\nBILLING_PORT=http\n")
    message = refusal(
        {"BILLING_DATABASE_POOL_SIZE": "0", "BILLING_DATABSE_URL": "x"},
        env_file=tmp_path / ".env",
        overrides={"request_timeout": float("nan")},
    )
    assert message.startswith("5 settings of billing are wrong")
    for part in (
        "NOSUCH_THING",
        "BILLING_PORT=http (.env)",
        "POOL_SIZE=0",
        "DATABSE_URL",
        "REQUEST_TIMEOUT=nan (override)",
    ):
        assert part in message


def test_every_example_of_a_setting_is_accepted() -> None:
    for name, info in ServiceSettings.model_fields.items():
        for example in info.examples or ():
            read({"BILLING_AUTH_AUDIENCE": "billpay", f"BILLING_{name.upper()}": str(example)})


@pytest.mark.parametrize(
    "text", ["a.example.com,*.internal", '["a.example.com", "*.internal"]', " a.example.com , *.internal "]
)
def test_a_list_is_written_with_commas_or_as_json(text: str) -> None:
    assert read({"BILLING_ALLOWED_HOSTS": text}).allowed_hosts == ["a.example.com", "*.internal"]


@pytest.mark.parametrize(
    "text",
    [
        "user=http://a:1,http://b:2;payment=http://c:3",
        '{"user": ["http://a:1", "http://b:2"], "payment": "http://c:3"}',
    ],
)
def test_the_addresses_of_services_are_written_in_one_line_or_as_json(text: str) -> None:
    assert read({"BILLING_SERVICES": text}).services == {
        "user": ["http://a:1", "http://b:2"],
        "payment": ["http://c:3"],
    }


def test_an_empty_text_says_none_where_none_is_allowed() -> None:
    assert read({"BILLING_OTLP_ENDPOINT": "", "BILLING_AUTH_ISSUER": ""}).otlp_endpoint is None


class Production(BaseModel):
    """A nested setting of a service."""

    network: str
    password: str


class PaymentSettings(ServiceSettings):
    wallet_key: SecretStr
    smtp_password: SecretStr = Field(SecretStr("short"), min_length=4, description="given by the provider")
    horizon: Production | None = None
    limits: dict[str, int] = Field(default_factory=dict)
    cache_size: Size = 64 * 1024
    token_lifetime: Duration = 600.0


def test_a_service_adds_settings_of_its_own() -> None:
    settings = load(
        PaymentSettings,
        "payment",
        environ={
            "PAYMENT_WALLET_KEY": STRONG,
            "PAYMENT_HORIZON": '{"network": "test", "password": "x"}',
            "PAYMENT_LIMITS": '{"a": 1}',
            "PAYMENT_CACHE_SIZE": "1.5MiB",
            "PAYMENT_TOKEN_LIFETIME": "1h30m",
        },
        env_file=None,
    )
    assert settings.wallet_key.get_secret_value() == STRONG
    assert settings.horizon is not None
    assert settings.horizon.network == "test"
    assert settings.limits == {"a": 1}
    assert settings.cache_size == 1_572_864
    assert settings.token_lifetime == 5400
    shown = {setting.key: setting.value for setting in describe(settings)}
    assert shown["PAYMENT_CACHE_SIZE"] == "1536KiB"
    assert shown["PAYMENT_TOKEN_LIFETIME"] == "90m"


def test_a_missing_setting_is_named() -> None:
    message = refusal({}, PaymentSettings)
    assert message.startswith("BILLING_WALLET_KEY is missing")


class Ranged(ServiceSettings):
    least: int = 1
    most: int = 2

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.least > self.most:
            raise ValueError("least is above most; seen password=hunter2-hunter2")
        return self


def test_a_rule_about_several_settings_is_told_as_the_service_words_it() -> None:
    message = refusal({"BILLING_LEAST": "3"}, Ranged)
    assert message == "The settings of billing: least is above most; seen password=***"


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read().port = 1  # type: ignore[misc]  # it is what is tried


def test_two_services_share_no_settings(tmp_path: Path) -> None:
    environ = {"BILLING_SERVICES": "user=http://a:1", "PAYMENT_PORT": "2"}
    billing = load(ServiceSettings, "billing", environ=environ, env_file=None)
    payment = load(ServiceSettings, "payment", environ=environ, env_file=None)
    assert billing.services
    assert payment.services == {}
    assert payment.services is not ServiceSettings().services
    payment.allowed_hosts.append("changed")
    assert load(ServiceSettings, "payment", environ={}, env_file=None).allowed_hosts == ["*"]


def test_loading_leaves_the_environment_as_it_was(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BILLING_PORT=3\n")
    before = dict(os.environ)
    assert read(env_file=tmp_path / ".env").port == 3
    assert dict(os.environ) == before


def test_a_description_is_plain_data_for_a_table_or_json() -> None:
    described = describe(read({"BILLING_PORT": "3003"}))
    (port,) = [setting for setting in described if setting.key == "BILLING_PORT"]
    assert (port.value, port.default, port.source) == ("3003", "8000", "environment")
    assert all(setting.help for setting in described)
    assert json.dumps([setting.help for setting in described])
