"""Whether connections can be had: told once when that ends, and once when it is over."""

from __future__ import annotations

import logging
import time
from typing import Final

from microkit.db.opening import said_of_opening

_PAUSE: Final = 10.0
"""Seconds between two times that it is told: while some connections are refused, those that are open serve on."""


class Access:
    """Of the pools of one database. Nothing is told before ``watched`` is set: a start that fails says why itself."""

    def __init__(self, logger: logging.Logger) -> None:
        self.watched = False
        self.lost = False
        """Whether the latest attempt failed."""
        self._logger = logger
        self._told = float("-inf")
        self._open = False  # whether the end is still to be told

    def refused(self, error: BaseException) -> None:
        """A connection could not be had, for this reason."""
        self.lost = True
        now = time.monotonic()
        if self.watched and now - self._told >= _PAUSE:
            self._told, self._open = now, True
            self._logger.error("the database gives no connection: %s", said_of_opening(error))

    def given(self) -> None:
        """One was opened."""
        self.lost = False
        if self._open:
            self._open = False
            self._logger.info("the database gives connections again")
