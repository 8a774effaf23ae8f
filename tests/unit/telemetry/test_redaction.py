"""What must not be shown is not shown, however it is wrapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from microkit.redaction import DEEPEST, MASK, MOST_CHARACTERS, MOST_ITEMS, names_a_secret, redact, redact_text, said

SECRET = "hunter2-hunter2"


@pytest.mark.parametrize(
    "name",
    [
        *("authorization", "Authorization", "proxy-authorization", "cookie", "Set-Cookie", "password", "PASSWORD"),
        *("newPassword", "password_hash", "token", "accessToken", "refresh_token", "X-Auth-Token", "otp", "otpCode"),
        *("seed", "walletSeed", "secret", "client_secret", "dsn", "SENTRY_DSN", "api_key", "apiKey", "X-API-Key"),
        *("apikey", "private_key", "jwt", "credentials", "passphrase", "DBPassword"),
    ],
)
def test_a_name_that_says_secret_is_known(name: str) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("bill_id", "author", "passenger", "secretary", "tokenizer", "key", "primary_key", "seedling", "compass"),
        *("status", "duration_ms", "path", "", "1"),
    ],
)
def test_a_name_that_only_resembles_one_is_not(name: str) -> None:
    assert not names_a_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}==",
        f"got Bearer {SECRET} from the caller",
        f"bearer {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f"Cookie: session={SECRET}; other=1",
        f"Set-Cookie: session={SECRET}; HttpOnly",
        f"postgresql+asyncpg://billing:{SECRET}@db:5432/billing",
        f"redis://:{SECRET}@redis",
        f"cannot connect to amqp://user:pa/ss@word{SECRET}@host/",
        f"https://user:{SECRET}@host/path?x=1 is down",
        f"password={SECRET}",
        f"password = {SECRET}",
        f'{{"password": "{SECRET}"}}',
        f'{{"password": "with spaces {SECRET}"}}',
        f"{{'new_password': '{SECRET}', 'a': 1}}",
        f"?access_token={SECRET}&x=1",
        f"refresh_token: {SECRET}",
        f"otp={SECRET}",
        f"SEED={SECRET}",
        f"client_secret={SECRET}",
        f"api_key={SECRET}",
        f"api-key: {SECRET}",
        f"SENTRY_DSN={SECRET}",
        f"eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ1MSJ9.{SECRET}",
    ],
)
def test_credentials_in_a_text_are_masked(text: str) -> None:
    shown = redact_text(text)
    assert SECRET not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "GET /bills/1 200",
        "http://localhost:3001/users?email=a@example.com",
        "mail to a@b.example",
        "bill 7 paid: 12.50 EUR",
        "tokens are handed out at /api/sessions",
        "the basic rule",
        "https://user@host/path",
        "sqlite+aiosqlite:///.microkit/billing.db",
        "key=bill_id",
        "",
    ],
)
def test_a_text_without_credentials_stays_as_it_is(text: str) -> None:
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "piece", ["a", "://", "://a:", "Bearer ", "password=", "eyJ", "a.", '"', "cookie", "token", "\n"]
)
def test_hostile_text_costs_no_more_than_its_length(piece: str) -> None:
    """A quadratic expression would not come to an end here."""
    assert redact_text(piece * 100_000)


class Login(BaseModel):
    name: str
    password: str


@dataclass
class Account:
    name: str
    seed: str
    pin: SecretStr


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"a": [{"b": {"Set-Cookie": SECRET}}]},
        {"headers": [("x", f"Bearer {SECRET}")]},
        {"token": {"nested": SECRET}},
        {"token": [SECRET]},
        {"otp": 123456, "deep": {"otp": SECRET}},
        Login(name="a", password=SECRET),
        {"body": [Login(name="a", password=SECRET)]},
        Account("a", SECRET, SecretStr(SECRET)),
        {"x": SecretStr(SECRET)},
        {b"password": SECRET, ("a", 1): f"password={SECRET}"},
        [f"https://u:{SECRET}@h"],
        {f"token={SECRET}"},
        ValueError(f"password={SECRET}"),
        f"password={SECRET}".encode(),
    ],
)
def test_secrets_in_what_is_nested_are_masked(value: Any) -> None:
    shown = orjson.dumps(redact(value)).decode()
    assert SECRET not in shown
    assert "123456" not in shown


def test_what_is_shown_is_bounded() -> None:
    deep: Any = "bottom"
    for _ in range(50):
        deep = {"down": deep}
    assert "bottom" not in str(redact(deep))
    assert str(redact(deep)).count("down") == DEEPEST
    cycle: list[Any] = []
    cycle.append(cycle)
    assert redact(cycle)
    assert len(redact(list(range(10_000)))) == MOST_ITEMS + 1
    assert len(redact({str(number): number for number in range(10_000)})) == MOST_ITEMS + 1
    assert len(redact("x" * 1_000_000)) < MOST_CHARACTERS + 40


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_what_cannot_be_shown_is_named() -> None:
    assert "Rude" in said(Rude())
    assert "Rude" in redact({"x": Rude()})["x"]


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(Rude()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_LIKE)
def test_whatever_is_logged_becomes_json(value: Any) -> None:
    orjson.dumps(redact(value))
    orjson.dumps(redact("\ud800" + str(value) if not isinstance(value, Rude) else "\ud800"))
