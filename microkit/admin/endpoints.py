"""What an instance tells its operators: documents made of what it owns."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version as installed
from typing import Any, Protocol

from microkit.declared import Declared
from microkit.outbox.admin import outbox_status
from microkit.page import PageRequest
from microkit.parts import Parts
from microkit.saga import SagaEngine
from microkit.saga.view import list_sagas
from microkit.settings import ServiceSettings, describe
from microkit.web import Health

Document = dict[str, Any]

_LATEST = 50


class Seen(Protocol):
    """An instance as these endpoints see it."""

    health: Health

    @property
    def declared(self) -> Declared: ...
    @property
    def settings(self) -> ServiceSettings: ...
    @property
    def parts_now(self) -> Parts | None:
        """What it owns; ``None`` while that is still being opened."""
        ...

    @property
    def began(self) -> datetime:
        """When it was started."""
        ...


async def health(seen: Seen) -> Document:
    """The state and every part, each with what it says."""
    reports = await seen.health.report()
    ready = await seen.health.ready()
    whole = "up" if all(report.up for report in reports.values()) else "degraded"
    return {
        "status": whole if ready else "down",
        "service": seen.declared.name,
        "state": str(seen.health.state),
        "parts": {
            name: {
                "status": "up" if report.up else "down",
                "critical": report.critical,
                "milliseconds": report.milliseconds,
                **report.details,
            }
            for name, report in reports.items()
        },
    }


def info(seen: Seen) -> Document:
    """What runs here, since when, and how it is set; no secret is readable in it."""
    return {
        "service": seen.declared.name,
        "version": seen.declared.version,
        "microkit": installed("microkit"),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        "started": seen.began.isoformat(),
        "uptime_seconds": round((datetime.now(UTC) - seen.began).total_seconds(), 3),
        "settings": [asdict(setting) for setting in describe(seen.settings)],
    }


async def pool(parts: Parts) -> Document:
    """The pools, and who has their connections."""
    database = parts.database
    return {"pools": [asdict(state) for state in database.pools()] if database is not None else []}


async def breakers(parts: Parts) -> Document:
    """The breakers of the services that are called, and of their instances."""
    return {
        "breakers": [
            {
                "service": name,
                "breaker": breaker.name,
                "state": breaker.state.name.lower(),
                "failures": breaker.failures,
            }
            for name, upstream in parts.upstreams.items()
            for breaker in upstream.breakers()
        ]
    }


async def endpoints(parts: Parts) -> Document:
    """The instances of the services that are called, as they are known and as calls have shown them."""
    return {
        "discovery": [asdict(standing) for standing in parts.resolver.standings()],
        "services": {name: upstream.state() for name, upstream in parts.upstreams.items()},
    }


async def sagas(parts: Parts) -> Document | None:
    """How the engine is, and the sagas that began last; ``None`` where there are no sagas."""
    engine = next((worker for worker in parts.workers if isinstance(worker, SagaEngine)), None)
    if engine is None or parts.database is None:
        return None
    async with parts.database.transaction(read_only=True) as tx:
        latest = (await list_sagas(tx, PageRequest(limit=_LATEST))).items
    return {"engine": asdict(engine.health()), "latest": [saga.model_dump(mode="json") for saga in latest]}


async def outbox(parts: Parts) -> Document | None:
    """How the outbox and its relays are; ``None`` where there is none."""
    if parts.database is None or parts.relay is None:
        return None
    return {"relay": asdict(parts.relay.health()), **asdict(await outbox_status(parts.database))}


async def consumers(parts: Parts) -> Document | None:
    """How each group gets on; ``None`` where nothing is consumed."""
    if parts.consumers is None:
        return None
    failure = parts.consumers.failure
    return {
        "failure": str(failure) if failure is not None else None,
        "groups": [asdict(group) for group in parts.consumers.progress()],
    }
