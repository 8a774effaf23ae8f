"""What the sandbox ledger publishes of itself: its network and the accounts that exist from its first ledger on.

The ledger speaks Horizon's own HTTP API, so there is no ``Contract`` for it: its clients are written against Stellar's
documentation and work unchanged against testnet.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SANDBOX_PASSPHRASE: Final = "Billpay Sandbox Network ; 2026"  # noqa: S105  Stellar's word for a network's public name
"""Signed into every envelope, so that none is valid on another network."""

DEMO_PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Lagos Water": "GBZMCEFBW7N6BJBYOX55GIER7G5FNRWK22OEZ7LDSUVRQASPTMUFXIJH",
        "Ikeja Electric": "GCIB7L67QBDMCBRHGW4ILB3ZFD35AWXFVB6TZPRW7IAANIXYMWG5ANB3",
        "Eko Gas": "GC24FZEEA6T52RYHBFH2MJGBXH2ICPV25OUGUUVMNJTKOHQOCI22PVEB",
        "Rivers Broadband": "GAHBDWM2XFPEDXX4O3NWEBDJDK4QJ5F6THKAK3V2GTCDZM6MHTGES4SS",
        "Abuja Waste": "GBJ7JLMZP2L37X3OATRYQ2AXLTQ4ZHH27K3JVCSSZKCC2G6PMT4SOMUV",
    }
)
"""Utility providers and their accounts in the sandbox. Each key pair's seed is the SHA-256 of
``billpay sandbox <name>``, so these accounts belong to everybody: they hold play money and are not to be paid on any
other network."""
