"""An attempt's bounds: how long it may take, and what whatever it raises comes to."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from opentelemetry.trace import Span

from microkit.context import deadline_within
from microkit.db import Database, Transaction, is_transient
from microkit.errors import DeadlineExceeded, MicrokitError
from microkit.saga.progress import DONE, Ended, Outcome, in_patience, outcome_of
from microkit.saga.store import LeaseLost
from microkit.saga.work import Unfit, Work
from microkit.telemetry.span import describe_failure

Result = TypeVar("Result")

# The deadline inside the step passes first, so that what is called there can say itself that it was too slow.
_GRACE: Final = 0.5
# What is no failure is no warning.
_LEVELS: Final = {Ended.REFUSED: logging.INFO, Ended.NOT_YET: logging.DEBUG}
# Longest pause, in seconds, before a database that is away is asked again.
_LONGEST_PAUSE: Final = 2.0


async def tried(
    work: Work, span: Span, log: logging.Logger, call: Callable[[], Awaitable[Result]]
) -> tuple[Outcome, Result | None]:
    """Calls it within the step's time. The outcome is ``DONE`` where it returned.

    Raises:
        LeaseLost, Unfit: as it raised them.
    """
    timeout = work.attempt.step.timeout
    try:
        async with asyncio.timeout(timeout + _GRACE):
            with deadline_within(timeout):
                return DONE, await call()
    except (LeaseLost, Unfit):
        raise
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        return Outcome(Ended.FAILED, "the step cancelled itself"), None
    except Exception as error:  # noqa: BLE001  whatever a step raises is its outcome
        outcome = in_patience(work.attempt, outcome_of(error))
        if outcome.ended is not Ended.NOT_YET:
            describe_failure(span, error)
        log_failure(log, work, outcome, error)
        return outcome, None


def log_failure(log: logging.Logger, work: Work, outcome: Outcome, error: Exception) -> None:
    expected = isinstance(error, MicrokitError)
    level = _LEVELS.get(outcome.ended, logging.WARNING)
    info = None if expected else error
    log.log(level, "saga step %s: %s", outcome.ended, outcome.reason, extra=work.attributes, exc_info=info)


async def insist(
    database: Database, unit: Callable[[Transaction], Awaitable[Result]], *, read_only: bool = False
) -> Result:
    """Runs ``unit`` again until the database answers. The engine cancels it when the lease has run out."""
    pause = 0.05
    while True:
        try:
            return await database.run(unit, read_only=read_only)
        except Exception as error:
            if not (is_transient(error) or isinstance(error, DeadlineExceeded)):
                raise
        await asyncio.sleep(random.uniform(0, pause))  # noqa: S311  full jitter, no secret
        pause = min(_LONGEST_PAUSE, pause * 2)
