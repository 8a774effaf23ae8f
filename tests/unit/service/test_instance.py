"""One service, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from microkit import (
    ANYONE,
    ClientAddress,
    ConfigurationError,
    Contract,
    DefinitionError,
    Event,
    Instance,
    MicrokitError,
    Service,
    ServiceSettings,
    Transaction,
    get,
    post,
)
from microkit.auth import Issuer, Principal, SigningKey
from microkit.bus.memory import MemoryBus
from microkit.message import Message
from microkit.outbox.tables import DEAD, outbox
from microkit.telemetry.logs import serving
from microkit.web import State

pytestmark = pytest.mark.anyio


class Note(BaseModel):
    text: str


class NoteTaken(Event, topic="notes.notes", key="note_id"):
    note_id: UUID
    text: str


class NoteDropped(Event, topic="notes.notes", key="note_id"):
    note_id: UUID


class Notes(Contract, service="notes", prefix="/notes", allow=ANYONE):
    @post("", status=201)
    async def take(self, body: Note) -> Note: ...

    @get("/count")
    async def count(self) -> int: ...


class Base(DeclarativeBase): ...


class NoteRow(Base):
    __tablename__ = "note"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    text: Mapped[str]


class SeenRow(Base):
    __tablename__ = "seen"

    id: Mapped[UUID] = mapped_column(primary_key=True)


def notes_service() -> Service:
    service = Service("notes", tables=Base.metadata)

    @service.handles(Notes.take)
    async def take(body: Note, tx: Transaction) -> Note:
        row = NoteRow(id=uuid4(), text=body.text)
        tx.add(row)
        tx.publish(NoteTaken(note_id=row.id, text=row.text))
        return body

    @service.handles(Notes.count)
    async def count(tx: Transaction) -> int:
        return await tx.scalar(select(func.count()).select_from(SeenRow)) or 0

    @service.on(NoteTaken)
    async def see(event: NoteTaken, tx: Transaction) -> None:
        tx.add(SeenRow(id=event.note_id))

    return service


@pytest.fixture
def settings(database_url: str) -> dict[str, object]:
    return {"database_url": database_url, "port": 0, "migrate_on_start": True}


@pytest.fixture
async def notes(anyio_backend: str, settings: dict[str, object]) -> AsyncIterator[Instance]:
    async with notes_service().instance(settings) as instance:
        yield instance


async def ask(url: str, method: str = "GET", json: object = None) -> tuple[int, object]:
    async with aiohttp.ClientSession() as session, session.request(method, url, json=json) as answer:
        return answer.status, await answer.json()


async def eventually_seen(instance: Instance, wanted: int) -> None:
    async with asyncio.timeout(60):
        while (await ask(f"{instance.url}/notes/count"))[1] != wanted:
            await asyncio.sleep(0.02)


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


async def test_a_mounted_app_gets_its_lifespan_and_the_service_s_problems(settings: dict[str, object]) -> None:
    heard = []

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.url.path}")

    async def broken(request: Request) -> PlainTextResponse:
        raise RuntimeError("a secret")

    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        heard.append("start")
        yield
        heard.append("stop")

    app = Starlette(
        routes=[StarletteRoute("/hello", hello), StarletteRoute("/broken", broken)],
        lifespan=asynccontextmanager(lifespan),
    )
    service = notes_service()
    service.mount("/old", app, allow=ANYONE)
    async with service.instance(settings) as instance:
        async with aiohttp.ClientSession() as session, session.get(f"{instance.url}/old/hello") as answer:
            assert (answer.status, await answer.text()) == (200, "hello /old/hello")
        async with aiohttp.ClientSession() as session, session.get(f"{instance.url}/old/broken") as answer:
            assert answer.status == 500
            assert "secret" not in await answer.text()
        assert heard == ["start"]

    assert heard == ["start", "stop"]


async def test_a_mounted_app_without_a_lifespan_is_served_as_it_is(settings: dict[str, object]) -> None:
    async def bare(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        if scope["type"] != "http":
            raise RuntimeError("this app speaks HTTP only")
        await PlainTextResponse("bare")(scope, receive, send)  # type: ignore[arg-type]

    service = notes_service()
    service.mount("/bare", bare, allow=ANYONE)
    async with (
        service.instance(settings) as instance,
        aiohttp.ClientSession() as session,
        session.get(f"{instance.url}/bare") as answer,
    ):
        assert await answer.text() == "bare"


class Thing:
    def __init__(self, name: str) -> None:
        self.name = name
        self.open = True


async def test_a_resource_lives_as_long_as_the_instance_and_is_bound_by_its_type() -> None:
    service = Service("things")
    made: list[Thing] = []

    @service.resource
    async def thing(settings: ServiceSettings) -> AsyncIterator[Thing]:
        made.append(Thing(settings.log_level))
        yield made[-1]
        made[-1].open = False

    @service.get("/thing", allow=ANYONE)
    async def read(thing: Thing) -> str:
        return thing.name

    async with service.instance({"port": 0}) as instance:
        assert await ask(f"{instance.url}/thing") == (200, "INFO")
        assert made[0].open

    assert not made[0].open


async def test_a_resource_that_hangs_or_fails_while_it_closes_keeps_no_other_open() -> None:
    service = Service("things")
    closed: list[str] = []

    @service.resource
    async def first(settings: ServiceSettings) -> AsyncIterator[Thing]:
        yield Thing("first")
        closed.append("first")

    @service.resource
    async def hanging(thing: Thing) -> AsyncIterator[asyncio.Lock]:
        yield asyncio.Lock()
        await asyncio.sleep(3600)

    @service.resource
    async def failing(thing: Thing) -> AsyncIterator[asyncio.Event]:
        yield asyncio.Event()
        raise RuntimeError("it broke")

    async with service.instance({"port": 0, "shutdown_timeout": "200ms"}):
        pass

    assert closed == ["first"]


async def test_a_resource_that_yields_nothing_and_two_of_one_type_are_refused_by_name() -> None:
    empty, twice = Service("empty"), Service("twice")

    @empty.resource
    async def nothing(settings: ServiceSettings) -> AsyncIterator[Thing]:
        for _ in ():
            yield Thing("never")

    for _ in range(2):

        @twice.resource
        async def thing(settings: ServiceSettings) -> AsyncIterator[Thing]:
            yield Thing("one")

    with pytest.raises(DefinitionError, match=r"nothing ended without yielding"):
        await empty.instance({"port": 0}).start()
    with pytest.raises(DefinitionError, match="two resources of the type Thing"):
        await twice.instance({"port": 0}).start()


@pytest.mark.parametrize("name", ["", "bad name!", "Billing", "-billing", "billing_2"])
def test_a_name_that_no_setting_can_have_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="lower-case words"):
        Service(name)


async def test_a_resource_that_fails_stops_the_start_and_closes_what_was_open(settings: dict[str, object]) -> None:
    service = notes_service()

    @service.resource
    async def thing() -> AsyncIterator[Thing]:
        raise ConfigurationError("THING_KEY is missing")
        yield Thing("never")

    with pytest.raises(ConfigurationError, match="THING_KEY"):
        await service.instance(settings).start()


async def test_a_guarded_operation_without_an_issuer_refuses_to_start_and_names_the_keys() -> None:
    service = Service("things")

    @service.get("/thing", allow="member")
    async def read() -> str:
        return "never"

    with pytest.raises(ConfigurationError, match="THINGS_AUTH_JWKS_URL"):
        await service.instance({"port": 0}).start()


async def test_a_contract_handled_in_part_refuses_to_start(settings: dict[str, object]) -> None:
    service = Service("notes", tables=Base.metadata)

    @service.handles(Notes.count)
    async def count() -> int:
        return 0

    with pytest.raises(DefinitionError, match=r"Notes\.take"):
        await service.instance(settings).start()


async def test_tables_without_migrations_are_refused_in_production(settings: dict[str, object]) -> None:
    production = {**settings, "environment": "production", "allowed_hosts": ["notes.example"]}

    with pytest.raises(ConfigurationError, match="migrations="):
        await notes_service().instance(production).start()


async def test_a_database_that_is_not_migrated_refuses_to_start_and_names_the_command(
    settings: dict[str, object],
) -> None:
    with pytest.raises(ConfigurationError, match="microkit migrate notes"):
        await notes_service().instance({**settings, "migrate_on_start": False}).start()


async def test_a_taken_port_is_one_clear_sentence(notes: Instance, tmp_path: Path) -> None:
    port = int(notes.url.rsplit(":", 1)[1])
    other = {"database_url": f"sqlite+aiosqlite:///{tmp_path}/other.db", "port": port, "migrate_on_start": True}

    with pytest.raises(ConfigurationError, match=str(port)):
        await notes_service().instance(other).start()


def test_an_operation_of_another_service_cannot_be_handled() -> None:
    with pytest.raises(DefinitionError, match="belongs to 'notes'"):
        Service("billing").handles(Notes.count)


async def test_a_client_used_outside_of_a_running_service_says_where_it_works() -> None:
    notes = Service("reader").client(Notes)

    with pytest.raises(MicrokitError, match="outside of a running service"):
        await notes.count()


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


def telling() -> Service:
    """A service that says who its client is."""
    service = Service("telling")

    @service.get("/", allow=ANYONE)
    async def who(client: ClientAddress) -> str:
        return client.address

    return service


@pytest.mark.parametrize(("trusted", "told"), [([], "127.0.0.1"), (["127.0.0.1"], "203.0.113.7")])
async def test_a_handler_learns_the_clients_address_from_proxies_that_are_trusted(
    trusted: list[str], told: str
) -> None:
    settings = {"port": 0, "trusted_proxies": trusted}
    async with telling().instance(settings) as instance, aiohttp.ClientSession() as session:
        headers = {"X-Forwarded-For": "198.51.100.1, 203.0.113.7"}
        async with session.get(instance.url, headers=headers) as response:
            assert await response.json() == told


@pytest.mark.parametrize(
    ("environment", "trusted", "warned"),
    [("production", [], True), ("production", ["127.0.0.1"], False), ("development", [], False)],
)
async def test_production_is_warned_where_addresses_are_asked_for_and_no_proxy_is_trusted(
    environment: str, trusted: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"port": 0, "environment": environment, "allowed_hosts": ["a.example"], "trusted_proxies": trusted}
    async with telling().instance(settings):
        assert ("TELLING_TRUSTED_PROXIES is empty" in caplog.text) is warned


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
