"""Amounts as Stellar counts them: seven decimal places, in the network's native asset."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

Amount = Annotated[Decimal, Field(gt=0, max_digits=18, decimal_places=7, description="In XLM, at most 7 decimals")]

StellarAddress = Annotated[str, Field(pattern=r"^G[A-Z2-7]{55}$", description="A Stellar account's public key")]
