"""The circuit breaker: after some failures in a row it refuses at once, and lets one call through now and then.

pybreaker holds the state and counts. Around it stands what it leaves to its user with coroutines:

- Its decorator and ``call()`` see a coroutine returned, which never fails; ``calling()`` works, but reads each
  exception as a failure or, excluded, as a success. A cancelled call is neither: here it leaves no mark.
- Half open it lets everybody in. Here one call is the probe, and others are refused until its outcome is known.
- A call that began before the breaker opened may end while it is half open. Its outcome says nothing of now.
- Its waiting time is read from the wall clock, which jumps. Here it is the monotonic one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Final, Protocol

from microkit.errors import Unavailable

FAILURES: Final = 5
"""In a row, until it opens."""

RESET: Final = 5.0
"""Seconds until it lets a call through again."""

_JITTER: Final = 0.1


class BreakerState(IntEnum):
    """As the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Unavailable, status=503, title="The service fails and is left alone for a moment"):
    """Refused without a call; ``Retry-After`` says when the next is let through."""


class Machine(Protocol):
    """What counts and holds the state: :class:`~microkit.resilience.circuit.Circuit`."""

    @property
    def failures(self) -> int: ...
    def succeeded(self) -> None: ...
    def failed(self) -> None: ...
    def open(self) -> None: ...
    def half_open(self) -> None: ...
    def close(self) -> None: ...


class Breaker:
    """Guards one service or one instance, for the tasks of one event loop.

    ``failures`` in a row open it; ``reset`` seconds later (give or take a tenth, so that a hundred callers do not probe
    together) one call is let through, whose outcome closes it or opens it again. ``changed`` is told each new state.
    While it is :meth:`lead`, it stays open until somebody else calls :meth:`probe_now` or :meth:`close`.

    ``ticket = breaker.enter()`` is followed by one of :meth:`succeeded`, :meth:`failed` and :meth:`left`, in a
    ``finally``; or all of it is ``with breaker.calling(): await ...``.
    """

    __slots__ = (
        "_changed",
        "_clock",
        "_failures",
        "_machine",
        "_opened_until",
        "_probing",
        "_reset",
        "_ticket",
        "led",
        "name",
        "state",
    )

    def __init__(
        self,
        name: str,
        *,
        failures: int = FAILURES,
        reset: float = RESET,
        changed: Callable[[Breaker, BreakerState], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.state = BreakerState.CLOSED
        self.led = False
        self._failures = failures
        self._reset = reset
        self._changed = changed
        self._clock = clock
        self._machine: Machine | None = None
        self._ticket = 1
        self._probing = False
        self._opened_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.name} {self.state.name.lower().replace('_', ' ')}>"

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return 0 if self._machine is None else self._machine.failures

    @property
    def reset(self) -> float:
        """Seconds that it stays open."""
        return self._reset

    @property
    def closed(self) -> bool:
        return self.state is BreakerState.CLOSED

    def admits(self) -> bool:
        """Whether :meth:`enter` would let a call through now."""
        if self.state is BreakerState.CLOSED:
            return True
        return not self._probing and (self.state is BreakerState.HALF_OPEN or self._clock() >= self._opened_until)

    def opens_at(self) -> float:
        """The reading of the clock from which a probe is let through; infinite while one is under way or ``led``."""
        if self.state is BreakerState.OPEN:
            return self._opened_until
        return math.inf if self._probing else 0.0

    def enter(self) -> int:
        """Lets a call through; what it returns is handed to the method that tells its outcome.

        Raises:
            BreakerOpen: it is open, or its probe is under way.
        """
        if self.state is BreakerState.CLOSED:
            return self._ticket
        if not self.admits():
            wait = max(0.0, self._opened_until - self._clock())
            seconds = str(max(1, math.ceil(min(wait, self._reset * 2))))
            raise BreakerOpen(f"{self.name} failed repeatedly", headers={"Retry-After": seconds})
        if self.state is BreakerState.OPEN:
            self._circuit().half_open()
        self._probing = True
        return self._ticket

    def succeeded(self, ticket: int) -> None:
        """The call was answered, with a refusal perhaps."""
        if ticket != self._ticket or self._machine is None:
            return  # began in another state; or nothing has failed yet, and there is nothing to reset
        if self._machine.failures or self._probing:
            self._machine.succeeded()

    def failed(self, ticket: int) -> None:
        """The call failed through the fault of whom it asked."""
        if ticket == self._ticket:
            self._circuit().failed()

    def left(self, ticket: int) -> None:
        """The call ended without telling anything: it was cancelled, or never sent."""
        if ticket == self._ticket:
            self._probing = False

    def calling(self) -> Calling:
        """``with breaker.calling(): await ...``: an exception is a failure, a cancellation is nothing.

        A :class:`~microkit.errors.Problem` or any other exception with a ``status`` below 500 counts as an answer.
        """
        return Calling(self)

    def open(self) -> None:
        """Opens it by hand, or because another process says so."""
        if self.state is not BreakerState.OPEN:
            self._circuit().open()

    def lead(self, led: bool) -> None:
        """Whether somebody else decides when it is probed, from now on."""
        if led != self.led:
            self.led = led
            if self.state is BreakerState.OPEN:
                self._wait()
                if self._changed is not None:
                    self._changed(self, self.state)  # whoever waits for it waits for another time now

    def probe_now(self) -> None:
        """Lets the next call through as the probe."""
        if self.state is BreakerState.OPEN:
            self._circuit().half_open()

    def close(self) -> None:
        """Closes it by hand, or because another process says so."""
        if self.state is not BreakerState.CLOSED:
            self._circuit().close()

    def _circuit(self) -> Machine:
        if self._machine is None:
            from microkit.resilience.circuit import Circuit  # noqa: PLC0415  not before there is something to count

            self._machine = Circuit(self.name, self._failures, self._reset, self._moved)
        return self._machine

    def _moved(self, name: str) -> None:
        state = _STATES[name]
        self._ticket += 1
        self._probing = False
        if state is BreakerState.OPEN:
            self._wait()
        if state is not self.state:
            self.state = state
            if self._changed is not None:
                self._changed(self, state)

    def _wait(self) -> None:
        wait = self._reset * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  spreads load
        self._opened_until = math.inf if self.led else self._clock() + wait


class Calling:
    """The block of :meth:`Breaker.calling`."""

    __slots__ = ("_breaker", "_ticket")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._ticket = self._breaker.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if error is None:
            self._breaker.succeeded(self._ticket)
        elif not isinstance(error, Exception):
            self._breaker.left(self._ticket)
        elif getattr(error, "status", 500) < 500:
            self._breaker.succeeded(self._ticket)
        else:
            self._breaker.failed(self._ticket)


_STATES: Final = {
    "closed": BreakerState.CLOSED,
    "half-open": BreakerState.HALF_OPEN,
    "open": BreakerState.OPEN,
}
