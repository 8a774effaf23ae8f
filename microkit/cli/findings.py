"""What ``microkit doctor`` says: findings, and what several services want of one server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import anyio

from microkit.errors import MicrokitError
from microkit.redaction import redact_text

Verdict = Literal["ok", "warning", "error"]

PATIENCE: Final = 10.0
"""Seconds for one server to answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: of which service, what was looked at, how it is, and what to do where it is not well."""

    service: str
    what: str
    verdict: Verdict
    said: str


@dataclass(frozen=True, slots=True)
class Demand:
    """What a service's processes may take of the server at ``where``, which allows ``most`` connections to all."""

    service: str
    where: str
    connections: int
    most: int


def finding(service: str, what: str, verdict: Verdict, said: str) -> Finding:
    """A finding on one line, without secrets."""
    return Finding(service, what, verdict, redact_text(" ".join(said.split())))


async def bounded(service: str, what: str, look: Callable[[], Awaitable[Sequence[Finding]]]) -> list[Finding]:
    """What ``look`` finds; what it raises, and that there was no answer in time, are findings, too."""
    try:
        with anyio.fail_after(PATIENCE):
            return list(await look())
    except TimeoutError:
        said = f"no answer in {PATIENCE:g} s: see the address and the network"
    except (MicrokitError, OSError) as error:
        said = str(error) or type(error).__name__
    return [finding(service, what, "error", said)]


def together(demands: Sequence[Demand]) -> list[Finding]:
    """Whether the services that share a server fit into it together, where each alone does."""
    found = []
    for where in dict.fromkeys(demand.where for demand in demands):
        sharing = [demand for demand in demands if demand.where == where]
        wanted, most = sum(demand.connections for demand in sharing), min(demand.most for demand in sharing)
        if len(sharing) > 1 and wanted > most:
            parts = " + ".join(f"{demand.connections} ({demand.service})" for demand in sharing)
            said = (
                f"together {parts} = {wanted} connections, and {where} allows {most}: give the services smaller "
                "pools, or the server a higher max_connections"
            )
            found.append(Finding("", "pools", "error", said))
    return found
