"""One service, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import func, select

from microkit import ANYONE, Contract, Instance, Service, Transaction, get
from microkit.auth import Issuer, Principal, SigningKey
from microkit.bus.memory import MemoryBus
from microkit.message import Message
from microkit.outbox.tables import DEAD, outbox
from microkit.telemetry.logs import serving
from microkit.web import State
from tests.unit.service.notes import NoteDropped, NoteRow, ask, eventually_seen, notes_service

pytestmark = pytest.mark.anyio


async def test_an_operation_its_event_and_the_handler_of_it_work_together(notes: Instance) -> None:
    assert await ask(f"{notes.url}/notes", "POST", {"text": "milk"}) == (201, {"text": "milk"})

    await eventually_seen(notes, 1)


async def test_health_names_every_part(notes: Instance) -> None:
    status, report = await ask(f"{notes.url}/health")

    assert status == 200
    assert isinstance(report, dict)
    assert set(report["parts"]) == {"discovery", "database", "bus", "relay", "consumers"}


async def test_two_instances_of_one_service_share_nothing(
    settings: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    service = notes_service()
    other = f"sqlite+aiosqlite:///{tmp_path}/other.db"
    if str(settings["database_url"]).startswith("postgresql"):
        cluster = request.getfixturevalue("postgres_cluster")
        name = cluster.create()
        request.addfinalizer(lambda: cluster.drop(name))
        other = cluster.url(name)
    async with service.instance(settings) as one, service.instance({**settings, "database_url": other}) as two:
        await ask(f"{one.url}/notes", "POST", {"text": "milk"})
        await eventually_seen(one, 1)

        assert await ask(f"{two.url}/notes/count") == (200, 0)
        assert one.telemetry.registry is not two.telemetry.registry
        assert one.telemetry.provider is not two.telemetry.provider
        assert one.database.engine is not two.database.engine
        assert b'http_route="/notes"' in one.telemetry.exposition()
        assert b'http_route="/notes"' not in two.telemetry.exposition()


async def test_a_restarted_instance_finds_what_it_had_written(settings: dict[str, object]) -> None:
    service = notes_service()
    async with service.instance(settings) as first:
        await ask(f"{first.url}/notes", "POST", {"text": "milk"})
        await eventually_seen(first, 1)

    async with service.instance(settings) as second:
        assert await ask(f"{second.url}/notes/count") == (200, 1)


async def test_an_instance_that_drains_says_so_and_still_answers(settings: dict[str, object]) -> None:
    instance = notes_service().instance({**settings, "drain_delay": "3s"})
    await instance.start()
    url = instance.url
    stopping = asyncio.create_task(instance.stop())
    while instance.health.state is not State.DRAINING:
        await asyncio.sleep(0.01)

    ready, _ = await ask(f"{url}/health/ready")
    answered, _ = await ask(f"{url}/notes", "POST", {"text": "late"})
    await stopping

    assert ready == 503
    assert answered == 201
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(f"{url}/health/live")


async def test_a_request_under_way_is_finished_before_the_instance_stops(settings: dict[str, object]) -> None:
    service = notes_service()
    entered = asyncio.Event()

    @service.get("/slow", allow=ANYONE)
    async def slow(tx: Transaction) -> int:
        entered.set()
        await asyncio.sleep(0.3)
        return await tx.scalar(select(func.count()).select_from(NoteRow)) or 0

    async with service.instance(settings) as instance:
        asking = asyncio.create_task(ask(f"{instance.url}/slow"))
        await entered.wait()

    assert await asking == (200, 0)


async def test_what_was_published_before_the_stop_is_handled_after_the_next_start(settings: dict[str, object]) -> None:
    service = notes_service()
    async with service.instance(settings) as first:
        for number in range(20):
            await ask(f"{first.url}/notes", "POST", {"text": str(number)})

    async with service.instance(settings) as second:
        await eventually_seen(second, 20)


async def test_an_event_of_a_type_that_nobody_declared_is_dead_lettered(settings: dict[str, object]) -> None:
    bus = MemoryBus()
    async with notes_service().instance(settings, bus=bus) as instance:
        known = NoteDropped(note_id=uuid4()).to_message("test")
        strange = Message("notes.notes", "1", b"{}", {**known.headers, "ce_id": "s", "ce_type": "notes.notes.Renamed"})
        await bus.publish([known, strange])
        await ask(f"{instance.url}/notes", "POST", {"text": "still alive"})
        await eventually_seen(instance, 1)
        async with instance.database.transaction(read_only=True) as tx:
            buried = (await tx.execute(select(outbox.c.payload, outbox.c.error).where(outbox.c.state == DEAD))).all()

    assert [row.payload for row in buried] == [b"{}"]
    assert "notes.notes.Renamed" in buried[0].error


async def test_log_lines_of_two_instances_name_their_own_service(caplog: pytest.LogCaptureFixture) -> None:
    seen: dict[str, str] = {}
    services = []
    for name in ("one", "two"):
        service = Service(name)

        @service.get("/who", allow=ANYONE)
        async def who() -> str:
            await asyncio.sleep(0.01)
            logging.getLogger("business").info("here")
            return serving.get()

        services.append(service)
    async with services[0].instance({"port": 0}) as one, services[1].instance({"port": 0}) as two:
        answers = await asyncio.gather(ask(f"{one.url}/who"), ask(f"{two.url}/who"))
        seen = {"one": str(answers[0][1]), "two": str(answers[1][1])}

    assert seen == {"one": "one", "two": "two"}


class Whoami(Contract, service="guarded", prefix="/whoami", allow="member"):
    @get("")
    async def ask(self) -> str: ...


async def test_who_started_while_the_issuer_was_there_takes_tokens_after_it_has_gone() -> None:
    """A gateway that was restarted must not depend on the user service being there when the first token comes."""
    key = SigningKey.generate()
    service = Service("guarded")

    @service.handles(Whoami.ask)
    async def ask(principal: Principal) -> str:
        return principal.subject

    issuer = web.Application()
    asked = asyncio.Event()

    async def keys(_: web.Request) -> web.Response:
        asked.set()
        return web.json_response({"keys": [key.public_jwk()]})

    issuer.router.add_get("/keys", keys)
    runner = web.AppRunner(issuer)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = {
        "port": 0,
        "auth_issuer": "https://user.example",
        "auth_audience": "notes",
        "auth_jwks_url": f"http://127.0.0.1:{runner.addresses[0][1]}/keys",
    }
    async with service.instance(settings) as instance:
        await asyncio.wait_for(asked.wait(), 60)
        await runner.cleanup()  # once what is under way has been answered
        token = Issuer("https://user.example", audience="notes", keys=[key]).sign("ada", roles=["member"]).value
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.request("GET", f"{instance.url}/whoami", headers=headers) as response:
            assert (response.status, await response.json()) == (200, "ada")
