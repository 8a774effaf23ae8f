"""The ledger's way to Stellar's binary formats, which loads ``stellar-sdk`` when the first envelope comes.

Importing stellar-sdk takes two thirds of a second, and the ledger is ready without it. It is imported by ``envelope``,
``results`` and ``friendbot``; those are imported here and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from reference.billpay.ledger.domain import Operation, Outcome, Submission


class MalformedEnvelope(ValueError):
    """Not an XDR ``TransactionEnvelope`` in base64."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded envelope: what the rules look at, and what Horizon only tells again."""

    xdr: str
    submission: Submission
    memo_type: str
    memo: str | None
    signatures: tuple[str, ...]

    @property
    def hash(self) -> str:
        return self.submission.hash


@dataclass(frozen=True, slots=True)
class Header:
    """A ledger's ``LedgerHeader`` in base64 and its hash, which the next ledger's header holds."""

    xdr: str
    hash: str


class Codec:
    """Encodes and decodes for the network with this ``passphrase``. :meth:`load` comes first, so as not to block."""

    def __init__(self, passphrase: str) -> None:
        self._passphrase = passphrase

    async def load(self) -> None:
        """Imports stellar-sdk in a thread; at once where that is done."""
        for module in ("envelope", "results", "friendbot"):
            await asyncio.to_thread(import_module, f"reference.billpay.ledger.{module}")

    def decode(self, envelope: str) -> Envelope:
        """Decodes an envelope and checks its signatures.

        Raises:
            MalformedEnvelope: it cannot be decoded.
        """
        from reference.billpay.ledger import envelope as envelopes  # noqa: PLC0415  see above

        return envelopes.decode(envelope, self._passphrase)

    def result(self, outcome: Outcome, operations: Sequence[Operation]) -> str:
        """The ``TransactionResult``, in base64."""
        from reference.billpay.ledger import results  # noqa: PLC0415  see above

        return results.result_xdr(outcome, operations)

    def header(
        self,
        *,
        sequence: int,
        previous_hash: str,
        close_time: int,
        fee_pool: int,
        envelopes: Sequence[str],
        results: Sequence[tuple[str, str]],
    ) -> Header:
        """The header of a closed ledger. ``results`` pairs each transaction's hash with its result."""
        from reference.billpay.ledger import results as results_xdr  # noqa: PLC0415  see above

        return results_xdr.header(
            sequence=sequence,
            previous_hash=previous_hash,
            close_time=close_time,
            fee_pool=fee_pool,
            envelopes=envelopes,
            results=results,
        )

    def gift(self, address: str, *, exists: bool, sequence: int, stroops: int) -> str:
        """Friendbot's signed envelope: it pays ``stroops`` to ``address``, opening the account unless it ``exists``.

        ``sequence`` is friendbot's account's, before this transaction.
        """
        from reference.billpay.ledger import friendbot  # noqa: PLC0415  see above

        return friendbot.gift(self._passphrase, address, exists=exists, sequence=sequence, stroops=stroops)
