"""How the calls of one operation are made: what the settings say, the contract, and what holds where neither does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from microkit.client.balancer import Ejection
from microkit.client.upstream import Guard
from microkit.contract import Contract, Operation
from microkit.errors import ConfigurationError
from microkit.resilience.breaker import FAILURES, RESET
from microkit.resilience.budget import FREE, SHARE
from microkit.resilience.bulkhead import CONCURRENCY, PATIENCE
from microkit.settings.clients import DEFAULT, P95, ClientSettings, OperationSettings, key_of

ATTEMPTS: Final = 3
CONNECT_TIMEOUT: Final = 1.0
ANSWER_LIMIT: Final = 8 * 1024 * 1024
"""Bytes of an answer, unpacked."""

FAIR: Final = 1.0
"""Seconds. Who was given less, and less than the operation's own time, and did not answer, has not failed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One operation. ``timeout`` (seconds) is the call's, ``attempt_timeout`` that of each attempt, ``repeatable`` says
    that a second attempt does no harm after the first, ``beside`` that it does none at the same time either,
    ``hedge_after`` is when one is made beside the first."""

    timeout: float
    attempt_timeout: float | None
    attempts: int
    repeatable: bool
    beside: bool
    hedge_after: float | Literal["p95"] | None
    collapse: bool

    @property
    def fair(self) -> float:
        """Seconds without an answer that count as a failure."""
        return 0.9 * min(FAIR, self.timeout, self.attempt_timeout or self.timeout)


class Policies:
    """The calls to ``service``: its own settings, then those of ``default``, then the contract and the defaults.

    A time-out of the settings for all operations does not outrank what the contract says of one.
    """

    def __init__(self, service: str, clients: Mapping[str, ClientSettings], timeout: float) -> None:
        self._service = service
        self._own = clients.get(key_of(service), ClientSettings())
        self._all = clients.get(DEFAULT, ClientSettings())
        self._timeout = timeout
        self.concurrency: int = self._of("concurrency", CONCURRENCY)
        self.queue_timeout: float = self._of("queue_timeout", PATIENCE)
        self.connect_timeout: float = self._of("connect_timeout", CONNECT_TIMEOUT)
        self.answer_limit: int = self._of("answer_limit", ANSWER_LIMIT)

    def guard(self) -> Guard:
        """How the service is guarded."""
        return Guard(
            retry_share=self._of("retry_share", SHARE),
            retry_free=self._of("retry_free", FREE),
            breaker_failures=self._of("breaker_failures", FAILURES),
            breaker_reset=self._of("breaker_reset", RESET),
            ejection=Ejection(self._of("ejection_failures", 5), self._of("ejection_time", 30.0)),
        )

    def of(self, operation: Operation[..., Any]) -> Policy:
        """How ``operation`` is called.

        Raises:
            ConfigurationError: the settings want it hedged or collapsed, and it is not safe.
        """
        own = self._own.operations.get(key_of(operation.name), OperationSettings())
        places = (own, self._own, self._all)
        timeout = own.timeout or operation.timeout or self._own.timeout or self._all.timeout or self._timeout
        keyed = _first(places, "retry_unsafe")
        repeatable = operation.safe or operation.idempotent
        harmless = operation.safe or (operation.idempotent and operation.hedge)
        hedge = _first(places, "hedge_after", default=P95 if operation.hedge else None)
        collapse = _first(places, "collapse", default=operation.collapse)
        if (own.hedge_after and not harmless) or (own.collapse and not operation.safe):
            raise ConfigurationError(
                f"clients: {operation.qualified_name} changes something and cannot be hedged or collapsed"
            )
        return Policy(
            timeout=timeout,
            attempt_timeout=_first(places, "attempt_timeout"),
            attempts=_first(places, "attempts", default=ATTEMPTS),
            repeatable=repeatable or keyed is not False,
            # A key is kept only by some handlers, and the caller does not see by which. What asks again once the first
            # has failed takes that risk in exchange for an answer; to ask twice what is under way has to be allowed.
            beside=repeatable or keyed is True,
            hedge_after=hedge if harmless else None,
            collapse=collapse and operation.safe,
        )

    def _of(self, name: str, default: Any) -> Any:
        return _first((self._own, self._all), name, default=default)

    def check(self, contracts: Sequence[type[Contract]]) -> None:
        """Refuses operations in the settings that no contract of the service has.

        Raises:
            ConfigurationError: with their names.
        """
        names = {key_of(operation.name) for contract in contracts for operation in contract.operations()}
        if unknown := self._own.operations.keys() - names:
            raise ConfigurationError(
                f"clients: {self._service} has no operation {', '.join(sorted(unknown))}; there are "
                f"{', '.join(sorted(names))}"
            )


def _first(places: tuple[OperationSettings, ...], name: str, *, default: Any = None) -> Any:
    for place in places:
        value = getattr(place, name, None)
        if value is not None:
            return value
    return default
