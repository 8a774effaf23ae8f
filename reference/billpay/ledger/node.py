"""The node: takes envelopes, waits with their senders, and closes ledgers on a timer."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

from microkit.db import Database, Transaction
from microkit.errors import Unavailable
from reference.billpay.ledger import closing, genesis
from reference.billpay.ledger.closing import Closed, Refused
from reference.billpay.ledger.codec import Codec
from reference.billpay.ledger.domain import MAX_TRANSACTIONS, STROOPS_PER_XLM
from reference.billpay.ledger.settings import LedgerSettings
from reference.billpay.ledger.tables import AccountRow, TransactionRow

_log = logging.getLogger("reference.billpay.ledger")

_Watcher = asyncio.Future[TransactionRow | Refused]


class NotYetClosed(Exception):
    """No ledger has taken the transaction while its sender waited; the next one still may."""


class AlreadyFunded(Exception):
    """Friendbot was asked for an account that has as much as friendbot gives."""


@dataclass(frozen=True, slots=True)
class _InLine:
    """A transaction that was admitted, or was in a ledger already (``done``)."""

    hash: str
    watcher: _Watcher
    done: TransactionRow | None


class Node:
    """The one node of the sandbox network; there is one for each database.

    What is admitted is durable before it is waited for, so that a killed node closes it after its restart.
    """

    def __init__(self, database: Database, settings: LedgerSettings) -> None:
        self._database = database
        self._settings = settings
        self._codec = Codec(settings.network_passphrase)
        self._wanted = asyncio.Event()
        self._watchers: dict[str, set[_Watcher]] = {}
        self._closer: asyncio.Task[None] | None = None
        self._friendbot = asyncio.Lock()

    async def start(self) -> None:
        """Writes the first ledger where there is none, and begins to close ledgers."""
        await self._database.run(closing.begin)
        self._wanted.set()  # there may be some that waited when the node was killed
        self._closer = asyncio.create_task(self._close_on_time(), name="ledger-closer")

    async def stop(self) -> None:
        """Stops closing ledgers; a ledger that is being closed is closed or not, never half."""
        if self._closer is not None:
            self._closer.cancel()
            with suppress(asyncio.CancelledError):
                await self._closer

    async def submit(self, envelope: str) -> TransactionRow:
        """Takes an envelope into the next ledger and waits for it. One that is in a ledger is answered from there.

        Raises:
            MalformedEnvelope: it cannot be decoded.
            Refused: it is not valid.
            NotYetClosed: no ledger has taken it within ``submit_timeout``.
        """
        await self._codec.load()
        return await self._leave(await self._enter(envelope))

    async def fund(self, address: str) -> TransactionRow:
        """Opens an account with friendbot's money, or fills one up, by a transaction like any other.

        Raises:
            AlreadyFunded: the account has enough.
            ValueError: ``address`` is none.
            Refused, NotYetClosed: as in :meth:`submit`.
        """
        await self._codec.load()
        async with self._friendbot:  # one sequence number after the other
            entry = await self._enter(await self._gift(address))
        return await self._leave(entry)

    async def _gift(self, address: str) -> str:
        amount = self._settings.friendbot_amount * STROOPS_PER_XLM

        async def look(tx: Transaction) -> tuple[int, AccountRow | None]:
            await closing.take_turn(tx)
            friendbot = await tx.get(AccountRow, genesis.FRIENDBOT)
            used = friendbot.sequence if friendbot else 0
            return used + await closing.ahead_of(tx, genesis.FRIENDBOT), await tx.get(AccountRow, address)

        sequence, account = await self._database.run(look)
        if account is not None and account.balance >= amount:
            raise AlreadyFunded
        return self._codec.gift(address, exists=account is not None, sequence=sequence, stroops=amount)

    async def _enter(self, xdr: str) -> _InLine:
        envelope = self._codec.decode(xdr)
        watcher: _Watcher = asyncio.get_running_loop().create_future()
        # Watched before it is admitted: its ledger may be closed before the admission has been answered.
        self._watchers.setdefault(envelope.hash, set()).add(watcher)
        try:
            done = await self._database.run(lambda tx: closing.admit(tx, self._codec, envelope))
        except BaseException:
            self._unwatch(envelope.hash, watcher)
            raise
        if done is None:
            self._wanted.set()
        return _InLine(envelope.hash, watcher, done)

    async def _leave(self, entry: _InLine) -> TransactionRow:
        try:
            if entry.done is not None:
                return entry.done
            async with asyncio.timeout(self._settings.submit_timeout):
                result = await entry.watcher
        except TimeoutError:
            raise NotYetClosed from None
        finally:
            self._unwatch(entry.hash, entry.watcher)
        if isinstance(result, Refused):
            raise result
        return result

    def _unwatch(self, name: str, watcher: _Watcher) -> None:
        watchers = self._watchers[name]
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[name]

    async def _close_on_time(self) -> None:
        interval, idle = self._settings.close_interval, self._settings.idle_interval
        while True:
            await asyncio.sleep(interval)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, idle - interval)):
                    await self._wanted.wait()
            try:
                await self.close_ledger(even_empty=not self._wanted.is_set())
            except Unavailable as error:  # its database is away, of which a stack says nothing
                _log.warning("the ledger was not closed, which is tried again: %s", error)
            except Exception:  # noqa: BLE001  nor may anything else end the ledger
                _log.exception("the ledger was not closed; it is tried again")

    async def close_ledger(self, *, even_empty: bool = True) -> Closed | None:
        """Closes one ledger now and tells those who wait."""
        await self._codec.load()
        self._wanted.clear()
        try:
            closed = await self._database.run(lambda tx: closing.close(tx, self._codec, even_empty=even_empty))
        except BaseException:
            self._wanted.set()
            raise
        if closed is not None:
            if len(closed.applied) + len(closed.dropped) >= MAX_TRANSACTIONS:
                self._wanted.set()  # there are more
            for name, row in closed.applied.items():
                self._tell(name, row)
            for name, refused in closed.dropped.items():
                self._tell(name, refused)
        return closed

    def _tell(self, name: str, result: TransactionRow | Refused) -> None:
        for watcher in self._watchers.get(name, ()):
            if not watcher.done():
                watcher.set_result(result)
