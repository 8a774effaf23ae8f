"""The first ledger: who holds all the money before anybody has moved any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from reference.billpay.ledger.domain import STROOPS_PER_XLM, TOTAL_COINS

FRIENDBOT: Final = "GCT4IX5OEAWPXBIY2ZZUY7FTY3BZHS6KLZDUDP77VDPUPD5Q3J2B6QVI"
"""Its seed is derived as the demo providers' are, so anybody may sign for it: in a sandbox everybody is a friend."""

GENESIS_LEDGER: Final = 1
GENESIS_HASH: Final = "8956d8c3f39a90891faa8c45fc82802cfe3eb779e7cd98aecf38414d922e2d87"
GENESIS_HEADER: Final = (
    "AAAAFwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAZmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSUAAAAAAAAA"
    "AAAAAAAAAAAA47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAEN4Lazp2QAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAZABMS0AAAAPoAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
"""Always the same, as the genesis ledger's close time is 1970; written out so that starting needs no stellar-sdk."""

PROVIDER_BALANCE: Final = 100 * STROOPS_PER_XLM


def balances() -> Mapping[str, int]:
    """Every account of the first ledger, in stroops: together, all there is."""
    providers = dict.fromkeys(DEMO_PROVIDERS.values(), PROVIDER_BALANCE)
    return {**providers, FRIENDBOT: TOTAL_COINS - sum(providers.values())}
