"""What every call carries besides its arguments: trace, deadline, identity, request id, idempotency key."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

from microkit.auth.issuer import ServiceTokens
from microkit.context import WorkContext
from microkit.contract import Operation, services_only
from microkit.errors import DeadlineExceeded
from microkit.telemetry.propagation import inject

_MAX_KEY: Final = 255


def time_allowed(operation: Operation[..., Any], context: WorkContext, timeout: float) -> float:
    """Seconds that the call may take: the operation's own time-out or else ``timeout``, and never longer than the
    caller waits.

    Raises:
        DeadlineExceeded: the caller waits no more.
    """
    allowed = timeout if operation.timeout is None else operation.timeout
    if context.deadline is None:
        return allowed
    left = context.deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(f"No time is left to call {operation.qualified_name}")
    return min(allowed, left)


def outgoing_headers(
    operation: Operation[..., Any], context: WorkContext, seconds: float, tokens: ServiceTokens | None
) -> dict[str, str]:
    """The headers of a call that may take ``seconds``."""
    headers = inject()
    headers["Accept"] = "application/json"
    headers["Request-Timeout-Ms"] = str(int(seconds * 1000) or 1)
    if bearer := _bearer(operation, context, tokens):
        headers["Authorization"] = f"Bearer {bearer}"
    if context.critical:
        headers["Request-Priority"] = "critical"
    if context.request_id:
        headers["X-Request-ID"] = context.request_id
    if not (operation.safe or operation.idempotent):
        headers["Idempotency-Key"] = _key(context.idempotency_key)
    return headers


def _bearer(operation: Operation[..., Any], context: WorkContext, tokens: ServiceTokens | None) -> str | None:
    """The caller's token, so that the callee decides about the caller; the service's own where there is no caller, or
    where only services are let in."""
    if tokens is not None and (context.bearer is None or services_only(operation.allow)):
        return tokens.token()
    return context.bearer


def _key(key: str | None) -> str:
    """The key of the work under way, so that work done again asks for the same thing again; else a new one."""
    if key is None:
        return str(uuid4())
    return key if len(key) <= _MAX_KEY else sha256(key.encode()).hexdigest()
