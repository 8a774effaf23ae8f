"""The rules of accounts, without a database."""

from __future__ import annotations

import unicodedata

import pytest

from reference.billpay.contracts.user import WeakPassword
from reference.billpay.user import domain
from reference.billpay.user.passwords import Passwords

BREACHED = frozenset({"password123", "trustno1"})


def wide(text: str) -> str:
    """As a Japanese keyboard may write it: in full-width characters."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


def accepted(password: str) -> str:
    return domain.accepted_password(password, email="ada@billpay.example", name="Ada Lovelace", breached=BREACHED)


@pytest.mark.parametrize(
    "password",
    [
        "eight_ch",
        "copper lantern 47 reed",
        "x1y" * 42,
        "пароль-не-простой",
        "密码不是很简单的",
        "🦊🐻🐼🐨🐯🦁🐮🐷",
        "        tab\t",
    ],
)
def test_long_enough_passwords_of_any_script_are_accepted(password: str) -> None:
    assert accepted(password) == unicodedata.normalize("NFKC", password)


@pytest.mark.parametrize(
    "password",
    ["", "seven_c", "x1y" * 43, "e\u0301" * 7, "\ufdfa" * 100, "a" * 10_000, "valid one \ud800"],
    ids=["empty", "7", "129", "7 composed", "1800 decomposed", "10000", "surrogate"],
)
def test_passwords_out_of_bounds_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword, match="8 to 128 characters"):
        accepted(password)


def test_length_counts_code_points_after_normalizing() -> None:
    assert accepted("ﬁve\u2075\u2075\u2075\u2075") == "five5555"  # seven and a ligature
    assert len(accepted("é" * 3 + "xyz" * 40 + "12345")) == 128
    with pytest.raises(WeakPassword):
        accepted("a\u0308" * 3 + "bcde")


def test_the_same_password_typed_on_another_keyboard_is_the_same() -> None:
    assert accepted("Zu\u0308rich-2026") == accepted("Z\u00fcrich-2026")
    assert accepted(wide("full") + "-" + wide("width")) == "full-width"


@pytest.mark.parametrize("password", ["password123", "Password123", "PASSWORD123", "trustno1", wide("password123")])
def test_breached_passwords_are_refused_however_written(password: str) -> None:
    with pytest.raises(WeakPassword, match="breached"):
        accepted(password)


@pytest.mark.parametrize("password", ["ada@billpay.example", "ADA@billpay.example", "Ada Lovelace", "ada lovelace"])
def test_ones_own_name_and_address_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword, match="your name"):
        accepted(password)


@pytest.mark.parametrize("password", ["aaaaaaaa", "abababab", "aAaAaAaAaA", "........"])
def test_one_or_two_characters_repeated_are_refused(password: str) -> None:
    with pytest.raises(WeakPassword, match="repeats"):
        accepted(password)


@pytest.mark.parametrize("password", ["password", "12345678", "qwertyuiop", "iloveyou", "trustno1", "1qaz2wsx"])
def test_the_built_in_list_knows_what_everybody_tries_first(password: str) -> None:
    breached = Passwords().breached
    assert password in breached
    assert all(len(word) >= 8 and word == word.casefold() for word in breached)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ada@billpay.example", "ADA@BillPay.Example"),
        ("straße@billpay.example", "STRASSE@billpay.example"),
        (wide("ada") + "@billpay.example", "ada@billpay.example"),
    ],
)
def test_addresses_that_read_the_same_are_one(one: str, other: str) -> None:
    assert domain.email_key(one) == domain.email_key(other)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
        ("", ""),
        ("x" * 500, "x" * 64),
    ],
)
def test_an_ipv6_host_is_counted_by_its_network(address: str, network: str) -> None:
    assert domain.network_of(address) == network


def test_refresh_tokens_are_256_random_bits_and_only_their_hash_is_kept() -> None:
    tokens = [domain.RefreshToken.new() for _ in range(100)]
    assert len({token.value for token in tokens}) == 100
    assert all(len(token.value) == 43 and len(token.digest) == 32 for token in tokens)
    assert domain.RefreshToken.of(tokens[0].value) == tokens[0]
    assert tokens[0].value not in repr(tokens[0])
