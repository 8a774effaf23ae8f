"""Amounts as Stellar counts them: seven decimal places, in the network's native asset."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

Amount = Annotated[Decimal, Field(gt=0, max_digits=18, decimal_places=7, description="In XLM, at most 7 decimals")]

StellarAddress = Annotated[str, Field(pattern=r"^G[A-Z2-7]{55}$", description="A Stellar account's public key")]

STROOPS_PER_XLM = 10_000_000


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
