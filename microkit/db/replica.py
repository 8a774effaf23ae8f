"""A copy of the database that may be read from, and does not have to be there."""

from __future__ import annotations

import logging
import time
from typing import Final

from microkit.db.pool import Pool

CONNECT_TIMEOUT: Final = 2.0
"""Seconds to open a connection: less than for the primary, because there is somebody else to ask."""

_PAUSE: Final = 5.0
"""Seconds for which one that failed is not asked."""


class Replica:
    """The replica's pool, and whether it is asked at present."""

    def __init__(self, pool: Pool, primary: Pool, logger: logging.Logger) -> None:
        self.pool = pool
        self._primary = primary
        self._logger = logger
        self._asked_again = float("-inf")
        self._away = False

    @property
    def asked(self) -> bool:
        """Whether the next transaction that may go there does."""
        return time.monotonic() >= self._asked_again

    @property
    def away(self) -> bool:
        """Whether it failed when it was last asked."""
        return self._away

    def failed(self, error: Exception) -> Pool:
        """No connection could be had: the primary's pool gives one."""
        self._asked_again = time.monotonic() + _PAUSE
        if not self._away:
            self._away = True
            self._logger.warning("the read replica is away, the primary is asked in its place: %s", error)
        return self._primary

    def answered(self) -> None:
        if self._away:
            self._away = False
            self._logger.info("the read replica is back")
