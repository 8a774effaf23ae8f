"""What travels with a piece of work: its deadline, its request id, its tenant and the caller's token.

The trace travels in OpenTelemetry's own context. Everything here is per task (a context variable), so that two
services in one process never see each other's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from microkit.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class WorkContext:
    """One request, one message or one saga step.

    ``deadline`` is a reading of ``time.monotonic()`` in seconds; ``None`` means that nobody waits.
    ``bearer`` is the caller's access token as it came, to be sent on in the caller's name. ``critical`` work goes
    before other where there is too much to do: the steps of sagas, and what is called for them. ``event_headers`` are
    sent with the events that are published: whom they answer, and where their own answer is awaited.
    """

    request_id: str = ""
    deadline: float | None = None
    tenant: str | None = None
    bearer: str | None = field(default=None, repr=False)
    idempotency_key: str | None = None
    critical: bool = False
    event_headers: Mapping[str, str] | None = None


_EMPTY = WorkContext()
_current: ContextVar[WorkContext] = ContextVar("microkit_work", default=_EMPTY)

enter = _current.set
leave = _current.reset


def current() -> WorkContext:
    """The context of the work under way, an empty one outside any."""
    return _current.get()


def on_the_clock(deadline: float) -> int:
    """A deadline as others can read it: milliseconds since 1970 (UTC), by this machine's clock."""
    return int((time.time() + deadline - time.monotonic()) * 1000)


def off_the_clock(milliseconds: int) -> float:
    """A reading of ``time.monotonic()`` from what :func:`on_the_clock` of any machine gave."""
    return time.monotonic() + milliseconds / 1000 - time.time()


def remaining() -> float | None:
    """Seconds until the deadline, ``None`` where there is none.

    Raises:
        DeadlineExceeded: it has passed.
    """
    deadline = _current.get().deadline
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded
    return left


def forget_bearer(*, critical: bool = False) -> None:
    """Takes the caller's token out of the work under way: what is called from here on is called in one's own name."""
    _current.set(replace(_current.get(), bearer=None, critical=critical))


@contextmanager
def working(context: WorkContext) -> Iterator[WorkContext]:
    """Makes ``context`` the current one inside the block."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


@contextmanager
def deadline_within(seconds: float) -> Iterator[WorkContext]:
    """Allows the block ``seconds``, or less where the current deadline comes sooner.

    It sets the deadline that calls and queries below respect; it does not cancel the block itself.
    """
    now = _current.get()
    wanted = time.monotonic() + seconds
    with working(replace(now, deadline=wanted if now.deadline is None else min(wanted, now.deadline))) as context:
        yield context
