"""A resource for as long as its instance runs: an async generator function, entered and left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, get_type_hints

from microkit.declared import Resource
from microkit.errors import DefinitionError

_log = logging.getLogger(__name__)


class Lifetime:
    """One resource, its parameters taken by type from what is ``offered``; it has ``patience`` seconds to close.

    Raises:
        DefinitionError: a parameter is of a type that nothing offers.
    """

    def __init__(self, resource: Resource, offered: Mapping[Any, object], *, patience: float) -> None:
        self._name = f"the resource {resource.factory.__module__}.{resource.factory.__qualname__}"
        hints = get_type_hints(resource.factory)
        hints.pop("return", None)
        missing = [name for name, kind in hints.items() if kind not in offered]
        if missing:
            known = ", ".join(sorted(kind.__name__ for kind in offered))
            raise DefinitionError(
                f"{self._name} asks for {missing[0]!r}, of a type that nothing offers before it; offered are: {known}"
            )
        self._patience = patience
        self._generator: AsyncIterator[Any] = resource.factory(**{name: offered[kind] for name, kind in hints.items()})

    async def __aenter__(self) -> Any:
        try:
            return await anext(self._generator)
        except StopAsyncIteration:
            raise DefinitionError(f"{self._name} ended without yielding the thing it offers") from None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One that hangs or fails must not keep the others from being closed.
        try:
            async with asyncio.timeout(self._patience):
                await anext(self._generator)
        except StopAsyncIteration:
            return
        except TimeoutError:
            _log.error("%s did not close within %g s and was cut off", self._name, self._patience)
        except Exception:  # noqa: BLE001  whatever it raises is its own trouble
            _log.exception("%s failed to close", self._name)
        else:
            _log.error("%s yields more than once; it is closed after the first", self._name)
