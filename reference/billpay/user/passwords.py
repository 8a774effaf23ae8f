"""Hashes passwords with argon2id, in threads."""

from __future__ import annotations

import secrets
from typing import Final

import anyio.to_thread
from anyio import CapacityLimiter
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from reference.billpay.user import domain

THREADS: Final = 4
"""Hashes at one time: each takes a processor and 19 MiB for some 20 ms."""


class Passwords:
    """Hashes and verifies. The default strength is OWASP's: argon2id, 19 MiB, two passes, one lane."""

    def __init__(self, hasher: PasswordHasher | None = None, *, threads: int = THREADS) -> None:
        self._hasher = hasher or PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._limiter = CapacityLimiter(threads)
        self._dummy = self._hasher.hash(secrets.token_hex(16))
        self.breached = _breached()

    async def hash(self, password: str) -> str:
        """The hash of a password in its normal form."""
        return await anyio.to_thread.run_sync(self._hasher.hash, password, limiter=self._limiter)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether ``password``, as it was typed, is the one that was hashed.

        Without an account (``None``) a hash is verified all the same, so that the time does not tell who has one.
        """
        normal = domain.normal_form(password)
        wanted = stored is not None and normal is not None
        fits = await anyio.to_thread.run_sync(
            self._fits, stored if stored is not None else self._dummy, normal or "", limiter=self._limiter
        )
        return wanted and fits

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _fits(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False


def _breached() -> frozenset[str]:
    """The passwords that appear most often in breaches, of those that are long enough to be chosen here.

    The list comes with zxcvbn: the 30,000 most frequent ones of several large breaches.
    """
    from zxcvbn.frequency_lists import FREQUENCY_LISTS  # noqa: PLC0415  60 ms that only a running service needs

    return frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= domain.SHORTEST)
