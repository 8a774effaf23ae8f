"""Several services in one process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import ANYONE, ConfigurationError, DefinitionError, Event, Service, ServiceSettings, System, Transaction
from microkit.outbox.tables import DEAD, outbox
from microkit.servers.ports import free_ports
from microkit.testing.postgres import Cluster
from microkit.testing.system import run_system

pytestmark = pytest.mark.anyio


class Said(Event, topic="talk.talk", key="id"):
    id: UUID


class HeardBase(DeclarativeBase): ...


class HeardRow(HeardBase):
    __tablename__ = "heard"

    id: Mapped[UUID] = mapped_column(primary_key=True)


class TalkBase(DeclarativeBase): ...


class SaidRow(TalkBase):
    __tablename__ = "said"

    id: Mapped[UUID] = mapped_column(primary_key=True)


def slow_listener() -> System:
    """A talker, and a listener that takes its time to start."""
    talker, listener = Service("talker", tables=TalkBase.metadata), Service("listener", tables=HeardBase.metadata)

    @listener.resource
    async def slow(settings: ServiceSettings) -> AsyncIterator[object]:
        await asyncio.sleep(0.5)
        yield object()

    @listener.on(Said)
    async def hear(event: Said, tx: Transaction) -> None:
        tx.add(HeardRow(id=event.id))

    return System("talk", [talker, listener])


Databases = dict[str, dict[str, object]]


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    """Settings of the talker's and the listener's databases: files in their folder, or PostgreSQL."""
    if request.param == "sqlite":
        yield {}
        return
    cluster: Cluster = request.getfixturevalue("postgres_cluster")
    names = {service: cluster.create() for service in ("talker", "listener")}
    yield {service: {"database_url": cluster.url(name)} for service, name in names.items()}
    for name in names.values():
        cluster.drop(name)


async def test_what_is_left_in_an_outbox_waits_for_a_neighbour_that_starts_later(
    tmp_path: Path, databases: Databases
) -> None:
    system = slow_listener()
    async with run_system(system, tmp_path, settings=databases) as talk:
        relay = talk["talker"].parts.relay
        assert relay is not None
        await relay.stop(1)  # as a kill would: committed, not published
        async with talk["talker"].database.transaction() as tx:
            tx.publish(*(Said(id=uuid4()) for _ in range(20)))

    async with run_system(system, tmp_path, settings=databases) as talk, asyncio.timeout(60):
        heard = 0
        while heard != 20:
            await asyncio.sleep(0.05)
            async with talk["listener"].database.transaction(read_only=True) as tx:
                heard = await tx.scalar(select(func.count()).select_from(HeardRow)) or 0


async def test_a_dead_letter_is_kept_where_no_broker_keeps_it(tmp_path: Path, databases: Databases) -> None:
    system = slow_listener()
    async with run_system(system, tmp_path, settings=databases) as talk:
        message = Said(id=uuid4()).to_message("talker")
        broken = type(message)(message.topic, message.key, b"{", message.headers)
        await talk.running.bus.publish([broken])
        async with asyncio.timeout(60):
            rows: list[bytes] = []
            while not rows:
                await asyncio.sleep(0.05)
                async with talk["listener"].database.transaction(read_only=True) as tx:
                    rows = list(await tx.scalars(select(outbox.c.payload).where(outbox.c.state == DEAD)))

    assert rows == [b"{"]


async def test_a_service_that_cannot_start_is_named_and_the_others_are_stopped(tmp_path: Path) -> None:
    good, bad = Service("good"), Service("bad")
    states: list[tuple[str, str]] = []

    @bad.resource
    async def never(settings: ServiceSettings) -> AsyncIterator[object]:
        raise ConfigurationError("BAD_KEY is missing")
        yield object()

    ports = dict(zip(["good", "bad"], free_ports(2), strict=True))
    with pytest.raises(ConfigurationError, match=r"^bad does not start: BAD_KEY is missing"):
        async with System("pair", [good, bad]).running(
            tmp_path, ports=ports, watch=lambda service, state: states.append((service, state))
        ):
            pytest.fail("it must not run")

    assert ("bad", "failed") in states
    assert states[-1][1] == "stopped"
    assert ("good", "stopped") in states


async def test_all_services_that_cannot_start_are_named_at_once(tmp_path: Path) -> None:
    services = [Service("one"), Service("two")]
    for service in services:

        @service.resource
        async def never(settings: ServiceSettings) -> AsyncIterator[object]:
            raise ConfigurationError(f"{settings.origin.key('thing')} is missing")
            yield object()

    with pytest.raises(ConfigurationError) as failed:
        async with run_system(System("pair", services), tmp_path):
            pytest.fail("it must not run")

    assert str(failed.value).splitlines() == [
        "2 services do not start:",
        "  one does not start: ONE_THING is missing",
        "  two does not start: TWO_THING is missing",
    ]


async def test_the_wrong_settings_of_all_services_are_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"TALKER_PROT": "1", "TALKER_REQUEST_TIMEOUT": "soon", "LISTENER_BODY_LIMIT": "much"}
    for key, value in wrong.items():
        monkeypatch.setenv(key, value)

    with pytest.raises(ConfigurationError) as failed:
        async with run_system(slow_listener(), tmp_path):
            pytest.fail("it must not run")

    heading, *lines = str(failed.value).splitlines()
    assert heading == "3 settings of talk are wrong:"
    for key, told in zip(wrong, lines, strict=True):
        assert told.startswith(f"  {key}")
        assert "An example: " in told or "did you mean" in told


async def test_each_service_gets_a_database_on_a_server_and_finds_it_again(
    tmp_path: Path, postgres_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"sqlite+aiosqlite:///{tmp_path}/own.db"
    monkeypatch.setenv("LISTENER_DATABASE_URL", own)
    system = System("Talk-" + tmp_path.name, slow_listener().services)
    ports = dict(zip(["talker", "listener"], free_ports(2), strict=True))
    name = re.sub(r"[^a-z0-9]+", "_", f"{system.name}_talker".lower())
    try:
        for found in (0, 1):
            async with system.running(tmp_path, ports=ports, databases=postgres_cluster.url("")) as talk:
                database = talk.instances["talker"].database
                assert database.dialect == "postgresql"
                assert talk.instances["listener"].settings.database_url.get_secret_value() == own
                async with database.transaction() as tx:
                    assert await tx.scalar(select(func.count()).select_from(SaidRow)) == found
                    tx.add(SaidRow(id=uuid4()))
        there = postgres_cluster.psql(f"SELECT datname FROM pg_database WHERE datname LIKE '{name[:-6]}%'")
        assert there.split() == [name]
    finally:
        postgres_cluster.psql(f'DROP DATABASE IF EXISTS "{name}"')


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///here.db", "PostgreSQL, not on 'sqlite'"),
        ("nonsense", "cannot be read"),
        ("postgresql://127.0.0.1:1", "no databases can be made at postgresql+asyncpg://127.0.0.1:1/postgres"),
    ],
)
async def test_a_server_without_databases_is_one_clear_sentence(tmp_path: Path, url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        async with slow_listener().running(tmp_path, databases=url):
            pytest.fail("it must not run")


async def test_a_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")

    with pytest.raises(ConfigurationError, match="--folder"):
        async with System("alone", [Service("alone")]).running(taken / "below"):
            pytest.fail("it must not run")


async def test_a_service_s_own_settings_win_over_what_the_system_would_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"sqlite+aiosqlite:///{tmp_path}/chosen.db"
    monkeypatch.setenv("TALKER_DATABASE_URL", chosen)

    async with run_system(slow_listener(), tmp_path) as talk:
        assert talk["talker"].settings.database_url.get_secret_value() == chosen
        assert talk["listener"].settings.database_url.get_secret_value().endswith("listener.db")


def test_two_services_of_one_name_are_refused() -> None:
    with pytest.raises(DefinitionError, match="same name"):
        System("pair", [Service("one"), Service("one")])


def test_an_issuer_that_is_no_service_is_refused() -> None:
    with pytest.raises(DefinitionError, match="issuer"):
        System("pair", [Service("one")], issuer="user")


async def test_an_open_service_needs_no_database_and_no_issuer(tmp_path: Path) -> None:
    service = Service("plain")

    @service.get("/hello", allow=ANYONE)
    async def hello() -> str:
        return "hello"

    async with run_system(System("plain", [service]), tmp_path) as plain:
        assert plain["plain"].parts.database is None


@pytest.mark.parametrize("damage", ["{", "[]", '{"private": {"alone": "x"}}', '{"private": [], "public": ""}', "\x00"])
async def test_damaged_service_keys_are_one_clear_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / "service-keys.json").write_text(damage)

    with pytest.raises(ConfigurationError, match="delete it"):
        async with System("alone", [Service("alone")]).running(tmp_path):
            pytest.fail("it must not run")


async def test_in_production_no_table_is_made_and_no_database_chosen_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTENER_ENVIRONMENT", "production")
    monkeypatch.setenv("LISTENER_ALLOWED_HOSTS", "listener.example")
    with pytest.raises(ConfigurationError, match="LISTENER_DATABASE_URL is missing"):
        async with run_system(slow_listener(), tmp_path):
            pytest.fail("it must not run")

    monkeypatch.setenv("LISTENER_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/own.db")
    with pytest.raises(
        ConfigurationError, match=r"listener has tables and no migrations: in production no table is made"
    ):
        async with run_system(slow_listener(), tmp_path):
            pytest.fail("it must not run")


async def test_a_broker_that_would_be_ignored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALKER_BUS_URL", "redis://127.0.0.1:1/0")

    with pytest.raises(ConfigurationError, match="TALKER_BUS_URL"):
        async with run_system(slow_listener(), tmp_path):
            pytest.fail("it must not run")


async def test_a_broker_that_is_away_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with slow_listener().running(tmp_path, bus="redis://:s3cretword@127.0.0.1:1/0"):
            pytest.fail("it must not run")

    assert str(refused.value).startswith("The bus redis://:***@127.0.0.1:1/0 cannot be reached: ")


async def test_a_page_elsewhere_cannot_speak_to_a_development_system_under_a_name_of_its_own(tmp_path: Path) -> None:
    service = Service("plain")

    @service.get("/hello", allow=ANYONE)
    async def hello() -> str:
        return "hello"

    async with run_system(System("plain", [service]), tmp_path) as plain, aiohttp.ClientSession() as session:
        url = f"{plain.urls['plain']}/hello"
        async with session.get(url, headers={"Host": "evil.example"}) as foreign, session.get(url) as own:
            assert (foreign.status, own.status) == (421, 200)
