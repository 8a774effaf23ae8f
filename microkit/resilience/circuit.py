"""pybreaker's state machine under a :class:`~microkit.resilience.breaker.Breaker`.

In a module of its own because importing pybreaker imports redis and tornado where they are installed, a tenth of a
second: it is loaded with the first failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import pybreaker

OPEN: Final = pybreaker.STATE_OPEN
HALF_OPEN: Final = pybreaker.STATE_HALF_OPEN


class _Tell(pybreaker.CircuitBreakerListener):
    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        self._changed(new_state.name)


class CountedFailure(Exception):
    """What pybreaker is shown in place of the error: it counts any."""


class Circuit:
    """Counts outcomes; ``changed`` is told the name of each new state, while the lock is held."""

    def __init__(self, name: str, failures: int, reset: float, changed: Callable[[str], None]) -> None:
        self._machine = pybreaker.CircuitBreaker(
            fail_max=failures, reset_timeout=reset, listeners=[_Tell(changed)], name=name, throw_new_error_on_trip=False
        )

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._machine.fail_counter

    def succeeded(self) -> None:
        self._machine.call(_return)

    def failed(self) -> None:
        with contextlib.suppress(CountedFailure):
            self._machine.call(_raise)

    def open(self) -> None:
        self._machine.open()

    def half_open(self) -> None:
        self._machine.half_open()

    def close(self) -> None:
        self._machine.close()


def _return() -> None: ...


def _raise() -> None:
    raise CountedFailure
