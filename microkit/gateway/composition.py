"""Composition: one operation that asks several services at once and joins what they answer (API composition).

    @service.get("/api/dashboard", allow=SIGNED_IN)
    async def dashboard(users: Users, bills: Billing) -> Dashboard:
        return await join(Dashboard, within=2.0, user=users.me(), bills=bills.list(PageRequest()))

The model says what the answer is when a part is not there: a field that may be ``None``, or that has a default, may be
missing, and its name then stands in the model's ``missing``; without one of the other fields there is no answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable, Mapping
from types import NoneType
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from microkit import context
from microkit.errors import DeadlineExceeded, DefinitionError, MicrokitError, Problem, RemoteProblem

M = TypeVar("M", bound=BaseModel)

MISSING: Final = "missing"
"""The field of the model that names the parts that are not there: ``missing: list[str]``."""

_log = logging.getLogger(__name__)


async def join(model: type[M], *, within: float = 2.0, **parts: Awaitable[Any]) -> M:
    """The model, whose fields are what the ``parts`` come to; all are waited for at once, ``within`` so many seconds in
    all, or as long as the caller waits.

    A part that fails or is late is left out where the model allows it, and named in ``missing``. What is the caller's
    own fault (a problem below 500, such as 401 of an expired token) is raised, whichever part it is of, and so is the
    failure of a part that must be there; the calls that are still under way are then ended.

    Raises:
        DefinitionError: the model has no such field, needs one that no part gives, or has none to name what is missing.
        Problem: see above.
        DeadlineExceeded: a part that must be there did not come in time.
    """
    optional = _optional(model, parts)
    left = context.remaining()
    until = time.monotonic() + (within if left is None else min(within, left))
    with context.deadline_within(within):
        tasks = {asyncio.ensure_future(part): name for name, part in parts.items()}
    found: dict[str, Any] = {}
    missing: list[str] = []
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(
                waiting, timeout=max(0.0, until - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done or waiting:
                name = tasks[task]
                error = task.exception() if task in done else DeadlineExceeded(f"{name} did not come in time")
                if error is None:
                    found[name] = task.result()
                elif name in optional and _is_theirs(error):
                    _log.warning("%s without %s: %s", model.__name__, name, error)
                    missing.append(name)
                else:
                    raise error
            if not done:
                break
    finally:
        await _ended(tasks)
    absent = {name: _absent(model.model_fields[name]) for name in missing}
    told = {MISSING: [name for name in parts if name in absent]} if MISSING in model.model_fields else {}
    return model(**found, **absent, **told)


def _optional(model: type[BaseModel], parts: Mapping[str, Awaitable[Any]]) -> frozenset[str]:
    """The parts that may be missing."""
    fields = model.model_fields
    needed = {name for name, field in fields.items() if field.is_required() and name != MISSING}
    optional = frozenset(
        name for name in parts if name in fields and (not fields[name].is_required() or _takes_none(fields[name]))
    )
    trouble = ""
    if unknown := (parts.keys() - fields.keys()) | (parts.keys() & {MISSING}):
        trouble = f"{model.__name__} has no field for {', '.join(sorted(unknown))}"
    elif lacking := needed - parts.keys():
        trouble = f"{model.__name__} needs {', '.join(sorted(lacking))}, which no part gives"
    elif optional and MISSING not in fields:
        trouble = f"{model.__name__} may lack {', '.join(sorted(optional))}: give it `missing: list[str]`"
    if trouble:
        for part in parts.values():
            if asyncio.iscoroutine(part):
                part.close()
        raise DefinitionError(trouble)
    return optional


def _takes_none(field: FieldInfo) -> bool:
    return NoneType in get_args(field.annotation)


def _absent(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _is_theirs(error: BaseException) -> bool:
    """Whether it is the service's failure and not the caller's, nor a mistake in the program."""
    if isinstance(error, Problem):
        return error.status >= 500 or error.status in {408, 429}
    if isinstance(error, RemoteProblem):
        return error.status >= 500 or error.status in {408, 429}
    return isinstance(error, (TimeoutError, OSError)) and not isinstance(error, MicrokitError)


async def _ended(tasks: Iterable[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
