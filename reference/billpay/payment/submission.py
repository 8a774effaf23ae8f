"""What becomes of a kept envelope: sent, sent again, and judged by what the ledgers say.

While its outcome is unknown the very same envelope is sent again, which the network takes once. Whether it can no
longer be taken is decided by ``domain.ruled_out``.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import update

from microkit import context
from microkit.db import Database, Transaction
from reference.billpay.payment import domain
from reference.billpay.payment.domain import Gone, Included, Rejected
from reference.billpay.payment.horizon import Horizon, OutcomeUnknown
from reference.billpay.payment.tables import EnvelopeRow

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 4.0
"""Seconds between two submissions of one envelope."""

_ABOUT_THE_MOMENT: Final = frozenset({"tx_bad_seq", "tx_too_late", "tx_too_early"})
"""Refusals that an envelope also gets which is in a ledger already, or still may get into one."""


class Submission:
    """Finds out what becomes of envelopes. ``lag`` is at ``domain.ruled_out``."""

    def __init__(self, database: Database, horizon: Horizon, *, lag: float) -> None:
        self._database = database
        self._horizon = horizon
        self._lag = lag

    async def fate(self, envelope: EnvelopeRow) -> Included | Rejected | Gone:
        """Submits the envelope until its fate is known.

        Raises:
            Unavailable: Horizon is away.
            DeadlineExceeded: the time for this is over.
        """
        pause = FIRST_PAUSE
        while True:
            attempts = await self._count(envelope)
            try:
                answer = await self._horizon.submit(envelope.xdr)
            except OutcomeUnknown:
                fate = await self._look(envelope)
            else:
                fate = await self._judge(envelope, answer, attempts)
            if fate is not None:
                return fate
            left = context.remaining()
            await asyncio.sleep(pause if left is None else min(pause, left))
            pause = min(LONGEST_PAUSE, 2 * pause)

    async def _count(self, envelope: EnvelopeRow) -> int:
        """Notes before each submission that there is one."""
        counted = (
            update(EnvelopeRow)
            .where(EnvelopeRow.hash == envelope.hash)
            .values(attempts=EnvelopeRow.attempts + 1)
            .returning(EnvelopeRow.attempts)
        )

        async def count(tx: Transaction) -> int:
            return await tx.scalar(counted) or 0

        return await self._database.run(count)

    async def _judge(
        self, envelope: EnvelopeRow, answer: Included | Rejected, attempts: int
    ) -> Included | Rejected | Gone | None:
        if isinstance(answer, Included):
            return answer
        if answer.code in _ABOUT_THE_MOMENT:
            return await self._look(envelope)
        found = await self._horizon.transaction(envelope.hash)
        if found is not None:
            return found if found.successful else Rejected(answer.code, answer.operations, found.ledger)
        if attempts == 1:
            return answer
        # An earlier submission, whose answer was lost, may still be on its way through the network.
        fate = await self._look(envelope)
        return answer if isinstance(fate, Gone) else fate

    async def _look(self, envelope: EnvelopeRow) -> Included | Rejected | Gone | None:
        """What the ledgers say, ``None`` where it is still open. The history is asked last: it must be the newest."""
        head = await self._horizon.head()
        account = await self._horizon.account(envelope.address)
        found = await self._horizon.transaction(envelope.hash)
        if found is not None:
            return found if found.successful else Rejected("tx_failed", (), found.ledger)
        gone = domain.ruled_out(
            sequence=envelope.sequence, max_time=envelope.max_time, account=account, head=head, lag=self._lag
        )
        return Gone() if gone else None
