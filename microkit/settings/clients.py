"""How a service calls others: what can be told of all clients, of one, and of one of its operations.

Written ``PAYMENT_CLIENTS__BILLING__TIMEOUT=2s`` for the calls of ``payment`` to ``billing``,
``PAYMENT_CLIENTS__BILLING__OPERATIONS__READ__HEDGE_AFTER=p95`` for one operation, ``PAYMENT_CLIENTS__DEFAULT__…`` for
all services that say nothing themselves; or all in one as JSON in ``PAYMENT_CLIENTS``. A dash in a name is written
``_``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from microkit.settings.quantities import Duration, Size, seconds

DEFAULT: Final = "default"
P95: Final = "p95"

_Positive = Annotated[Duration, Field(gt=0)]


def key_of(name: str) -> str:
    """``Audit-Log`` as it is written in a variable: ``audit_log``."""
    return name.lower().replace("-", "_")


def _delay(value: Any) -> Any:
    return value if value is None or value == P95 else seconds(value) or _refuse()


def _refuse() -> Any:
    raise ValueError(f"is longer than nothing, or {P95}")


def _by_key(value: Any) -> Any:
    """Names as keys; what two spellings of one name say is put together, the later before the earlier."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = key_of(str(name))
        found[key] = _merged(found[key], item) if key in found else item
    return found


def _merged(one: Any, other: Any) -> Any:
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return other
    return {**one, **{name: _merged(one[name], item) if name in one else item for name, item in other.items()}}


class OperationSettings(BaseModel):
    """One operation, or all of a client that say nothing else. What is unset is taken from the next more general place,
    in the end from the contract and the defaults below."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    timeout: _Positive | None = Field(None, description="longest a call may take; the caller's deadline bounds it too")
    attempt_timeout: _Positive | None = Field(
        None,
        description="longest one attempt may take, unset: all of the call's, with another beside it after half",
    )
    attempts: int | None = Field(None, ge=1, le=10, description="attempts at most, the first included; 3 if unset")
    retry_unsafe: bool | None = Field(
        None,
        description="whether a call that changes something is made again under its Idempotency-Key; after a failure if"
        " unset, also beside an attempt that is not answered if true",
    )
    hedge_after: Annotated[float | Literal["p95"] | None, BeforeValidator(_delay)] = Field(
        None, description="make a second attempt beside the first after this time, or after p95 of the times measured"
    )
    collapse: bool | None = Field(None, description="whether equal reads under way are made once; no if unset")


class ClientSettings(OperationSettings):
    """The calls to one service."""

    concurrency: int | None = Field(None, ge=1, le=100_000, description="calls under way at once; 256 if unset")
    queue_timeout: Duration | None = Field(None, description="longest a call waits for its turn; 1s if unset")
    connect_timeout: _Positive | None = Field(None, description="longest a connection may take to stand; 1s if unset")
    retry_share: float | None = Field(None, ge=0, le=1, description="retries a call allows; 0.2 if unset")
    retry_free: float | None = Field(None, ge=0, le=1000, description="retries a second besides; 10 if unset")
    breaker_failures: int | None = Field(
        None, ge=1, le=1000, description="failures in a row that open an instance's breaker; 5 if unset"
    )
    breaker_reset: _Positive | None = Field(None, description="how long a breaker stays open; 5s if unset")
    ejection_failures: int | None = Field(
        None, ge=0, le=1000, description="failures in a row that eject an instance, 0 for never; 5 if unset"
    )
    ejection_time: _Positive | None = Field(None, description="how long it is ejected the first time; 30s if unset")
    answer_limit: Size | None = Field(None, ge=1, description="largest answer, unpacked; 8MiB if unset")
    operations: Annotated[dict[str, OperationSettings], BeforeValidator(_by_key)] = Field(
        default_factory=dict, description="by the operation's name"
    )


Clients = Annotated[dict[str, ClientSettings], BeforeValidator(_by_key)]
