"""Amounts as Stellar counts them: seven decimal places, in the network's native asset."""

from __future__ import annotations

import re
from base64 import b32decode
from binascii import crc_hqx
from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema


def _plain(amount: Decimal) -> str:
    return format(amount, "f")  # never 5E-7


Amount = Annotated[
    Decimal,
    Field(gt=0, max_digits=18, decimal_places=7, description="In XLM, at most 7 decimals", examples=["42.5"]),
    PlainSerializer(_plain, return_type=str, when_used="json"),
]

_WRITTEN: Final = r"^(?=.*[1-9])[0-9]{1,11}(\.[0-9]{1,7})?$"


def _as_people_write_it(given: object) -> object:
    """Python's Decimal also reads ``1e3``, ``+1`` and Arabic digits, which the schema does not tell of."""
    if isinstance(given, str) and not re.fullmatch(_WRITTEN, given, re.ASCII):
        raise ValueError("an amount is written like 42.5, with at most 11 digits and 7 decimals")
    numeric = isinstance(given, str | int | float) and not isinstance(given, bool)
    return Decimal(str(given)) if numeric else given


NewAmount = Annotated[
    Amount,
    BeforeValidator(_as_people_write_it),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _WRITTEN},
                {"type": "number", "exclusiveMinimum": 0, "maximum": 99_999_999_999},
            ],
            "description": "In XLM, at most 7 decimals",
            "examples": ["42.5"],
        },
        mode="validation",
    ),
]
"""An amount that a client sends."""

Deducted = Annotated[
    Decimal,
    Field(ge=0, max_digits=18, decimal_places=7, description="In XLM, at most 7 decimals; 0 for nothing"),
    PlainSerializer(_plain, return_type=str, when_used="json"),
]

STROOPS_PER_XLM: Final = 10_000_000


def _without_a_slip(address: str) -> str:
    """Compares an address with the checksum in it (SEP-23: version byte, key, CRC-16/XMODEM, in base32)."""
    raw = b32decode(address)
    if crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise ValueError("the address has a mistake in it: its checksum does not fit")
    return address


StellarAddress = Annotated[
    str,
    Field(
        pattern=r"^G[A-Z2-7]{55}$",
        description="A Stellar account's public key",
        examples=["GBZMCEFBW7N6BJBYOX55GIER7G5FNRWK22OEZ7LDSUVRQASPTMUFXIJH"],
    ),
    AfterValidator(_without_a_slip),
]


def to_stroops(amount: Decimal) -> int:
    """An amount in the network's smallest unit, the form in which services store and compare it.

    Raises:
        ValueError: the amount has more than seven decimals.
    """
    stroops = amount * STROOPS_PER_XLM
    if stroops != stroops.to_integral_value():
        raise ValueError(f"{amount} has more than seven decimals")
    return int(stroops)


def from_stroops(stroops: int) -> Decimal:
    """The amount in XLM, with its seven decimals, so that it reads the same everywhere."""
    return Decimal(stroops).scaleb(-7)
