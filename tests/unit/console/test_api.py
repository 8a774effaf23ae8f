"""The console's API on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from microkit.console.api import api
from microkit.console.desk import Document, Post
from microkit.db import Database
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Server

pytestmark = pytest.mark.anyio


@dataclass
class Quiet:
    """A system without services."""

    name: str = "quiet"
    ring: TraceRing = field(default_factory=TraceRing)
    databases: Mapping[str, Database] = field(default_factory=dict)
    posts: Sequence[Post] = ()

    async def services(self) -> list[Document]:
        return []


@pytest.fixture
def system() -> Quiet:
    return Quiet()


@pytest.fixture
async def url(system: Quiet) -> AsyncIterator[str]:
    server = Server(api(system))
    await server.start()
    yield server.url
    await server.stop(1)


async def read(url: str, **headers: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.json(content_type=None) if response.status != 400 else None


async def test_a_web_page_that_points_its_own_name_at_the_loopback_reads_nothing(url: str) -> None:
    assert (await read(f"{url}/services"))[0] == 200
    assert (await read(f"{url}/services", Host="attacker.example"))[0] == 400


async def test_a_trace_is_shown_with_its_services_and_its_spans_by_their_start(url: str, system: Quiet) -> None:
    for service in ("shop", "stock"):
        telemetry = Telemetry(service, ring=system.ring)
        with telemetry.span("outer") as span, telemetry.span("inner"):
            pass
        trace_id = f"{span.get_span_context().trace_id:032x}"
        status, document = await read(f"{url}/traces/{trace_id}")
        assert (status, document["services"]) == (200, [service])
        outer, inner = document["spans"]
        assert (outer["name"], outer["parent_id"]) == ("outer", None)
        assert (inner["name"], inner["parent_id"]) == ("inner", outer["span_id"])
    _, latest = await read(f"{url}/traces")
    assert [(trace["service"], trace["name"]) for trace in latest["traces"]] == [("stock", "outer"), ("shop", "outer")]


@pytest.mark.parametrize("path", ["/traces/0", "/traces/none", "/sagas/none", f"/sagas/{'0' * 32}"])
async def test_what_is_not_there_is_a_404(url: str, path: str) -> None:
    status, problem = await read(url + path)
    assert (status, problem["type"]) == (404, "urn:problem:not-found")


async def ask(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


@pytest.mark.parametrize("path", ["/dead-letters/redrive", "/outbox/replay", "/outbox/unpark"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),  # what a page of another origin can send without being asked first
        (b"since=1h", "application/x-www-form-urlencoded", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{" + b" " * 70_000 + b"}", "application/json", 413),
    ],
)
async def test_what_changes_something_takes_json_alone(
    url: str, path: str, body: bytes, kind: str, status: int
) -> None:
    answered, problem = await ask(url + path, body, **{"Content-Type": kind})
    assert (answered, problem["type"]) == (status, "urn:problem:desk")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dead-letters/redrive", b'{"wanted": {"colour": "red"}}'),
        ("/dead-letters/redrive", b'{"pace": {"max_replays": "many"}}'),
        ("/outbox/replay", b'{"since": "2026-01-31T12:00:00"}'),
        ("/outbox/replay", b'{"dry_run": "perhaps"}'),
    ],
)
async def test_what_is_not_understood_is_refused(url: str, path: str, body: bytes) -> None:
    status, problem = await ask(url + path, body, **{"Content-Type": "application/json"})
    assert (status, problem["status"]) == (400, 400)


async def test_a_system_without_events_has_no_dead_letters(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/dead-letters") as response:
        assert (response.status, await response.text()) == (200, "")
    assert (await read(f"{url}/bus/topics"))[1] == {"topics": []}
    status, problem = await read(f"{url}/outbox?service=nobody")
    assert (status, problem["detail"]) == (422, "No service 'nobody' with events is here; there are: none")
