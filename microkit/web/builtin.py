"""What every service serves beside its own: health, metrics, its OpenAPI document and a page to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import orjson

from microkit.errors import Unavailable
from microkit.telemetry import Telemetry
from microkit.telemetry.metrics import CONTENT_TYPE
from microkit.web.call import JSON, Call, HeaderList, Reply
from microkit.web.docs import page
from microkit.web.endpoint import Answer
from microkit.web.health import Health, PartReport
from microkit.web.openapi import document
from microkit.web.route import Route, Surface

_NO_STORE: Final = (b"cache-control", b"no-store")
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
_METRICS_HEADERS: Final[HeaderList] = [(b"content-type", CONTENT_TYPE.encode()), _NO_STORE, _NO_SNIFFING]
_DOCUMENT_HEADERS: Final[HeaderList] = [(b"content-type", JSON), _NO_SNIFFING]
_STATUS_HEADERS: Final[HeaderList] = [(b"content-type", JSON), _NO_STORE, _NO_SNIFFING]
_PAGE_HEADERS: Final[HeaderList] = [
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
        b"; frame-ancestors 'none'",
    ),
    _NO_SNIFFING,
    (b"referrer-policy", b"no-referrer"),
]


def builtin_routes(
    surface: Surface, routes: Sequence[Route], health: Health, telemetry: Telemetry, own: Answer | None
) -> Mapping[str, Answer]:
    """The answers to GET by path. ``own`` is the service's own ``/openapi.json``, where it has one."""
    document_of_service = cache(lambda: orjson.dumps(document(surface, routes)))

    async def live(_: Call) -> Reply:
        return _status(await health.live(), "up", "down")

    async def one_ready() -> bool:
        return await health.ready() or (surface.ready is not None and await surface.ready())

    async def ready(_: Call) -> Reply:
        return _status(await one_ready(), "ready", "not ready", state=health.state)

    async def startup(_: Call) -> Reply:
        return _status(health.started, "started", "starting")

    async def parts(_: Call) -> Reply:
        reports = await health.report()
        up = await one_ready()
        shown = {name: _shown(report) for name, report in reports.items()}
        whole = "up" if all(report.up for report in reports.values()) else "degraded"
        return _status(
            up, whole, "down", service=surface.service, version=surface.version, state=health.state, parts=shown
        )

    async def metrics(_: Call) -> Reply:
        text = telemetry.exposition() if surface.metrics is None else await surface.metrics()
        return Reply(200, _METRICS_HEADERS, text)

    async def openapi(_: Call) -> Reply:
        return Reply(200, _DOCUMENT_HEADERS, document_of_service())

    async def docs(call: Call) -> Reply:
        answer = await (own or openapi)(call)
        if not isinstance(answer, Reply) or answer.status != 200:
            raise Unavailable("The OpenAPI document of this service cannot be had")
        return Reply(200, _PAGE_HEADERS, page(orjson.loads(answer.body)).encode())

    return {
        "/health": parts if surface.internals else ready,
        "/health/live": live,
        "/health/ready": ready,
        "/health/startup": startup,
        **({"/metrics": metrics} if surface.internals else {}),
        "/openapi.json": openapi,
        "/docs": docs,
        **_of_events(surface),
    }


def _of_events(surface: Surface) -> Mapping[str, Answer]:
    written = surface.asyncapi
    if written is None:
        return {}
    document_of_events = cache(lambda: orjson.dumps(written()))

    async def asyncapi(_: Call) -> Reply:
        return Reply(200, _DOCUMENT_HEADERS, document_of_events())

    return {"/asyncapi.json": asyncapi}


def _status(good: bool, yes: str, no: str, **more: Any) -> Reply:
    body = orjson.dumps({"status": yes if good else no, **more})
    return Reply(200 if good else 503, _STATUS_HEADERS, body)


def _shown(report: PartReport) -> dict[str, Any]:
    return {
        "status": "up" if report.up else "down",
        "critical": report.critical,
        "milliseconds": report.milliseconds,
        **report.details,
    }
