"""The admin endpoints: on a port of their own, from the first moment to the last."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import ANYONE, Contract, Instance, Service, ServiceSettings, Transaction, get, post
from microkit.errors import ConfigurationError
from microkit.message import Event
from microkit.settings import load

pytestmark = pytest.mark.anyio


class Word(BaseModel):
    text: str


class Said(Event, topic="words.words", key="text"):
    text: str


class Words(Contract, service="words", prefix="/words", allow=ANYONE):
    @post("", status=201)
    async def say(self, body: Word) -> Word: ...

    @get("/slow")
    async def slow(self) -> int: ...


class Base(DeclarativeBase): ...


class WordRow(Base):
    __tablename__ = "word"

    text: Mapped[str] = mapped_column(primary_key=True)


class Gate:
    """Holds the slow ones back."""

    def __init__(self) -> None:
        self.open = asyncio.Event()


def words(*, opening: asyncio.Event | None = None) -> Service:
    service = Service("words", tables=Base.metadata, version="1.2.3")

    @service.resource
    async def gate() -> AsyncIterator[Gate]:
        if opening is not None:
            await opening.wait()
        made = Gate()
        yield made

    @service.handles(Words.say)
    async def say(body: Word, tx: Transaction) -> Word:
        tx.add(WordRow(text=body.text))
        tx.publish(Said(text=body.text))
        return body

    @service.handles(Words.slow)
    async def slow(tx: Transaction, gate: Gate) -> int:
        found = len(await tx.scalars(select(WordRow)))
        await gate.open.wait()
        return found

    @service.on(Said)
    async def hear(event: Said) -> None: ...

    return service


@pytest.fixture
def settings(sqlite_url: str) -> dict[str, object]:
    return {"database_url": sqlite_url, "port": 0, "admin_port": 0, "migrate_on_start": True}


async def ask(instance: Instance, path: str, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        method = more.pop("method", "GET")
        async with session.request(method, f"{instance.admin_url}{path}", **more) as answer:
            return answer.status, await answer.json(content_type=None) if path != "/metrics" else await answer.text()


async def test_every_endpoint_tells_of_a_running_instance(settings: dict[str, object]) -> None:
    async with words().instance(settings) as instance:
        assert instance.admin_url != instance.url
        assert (await ask(instance, "/health"))[1]["parts"]["database"]["status"] == "up"
        assert await ask(instance, "/health/live") == (200, {"status": "up"})
        assert await ask(instance, "/health/ready") == (200, {"status": "ready"})
        status, metrics = await ask(instance, "/metrics")
        assert status == 200
        assert "db_client_connection_count" in metrics
        _, info = await ask(instance, "/info")
        assert (info["service"], info["version"]) == ("words", "1.2.3")
        assert {"python", "started", "microkit", "uptime_seconds"} <= info.keys()
        _, pool = await ask(instance, "/pool")
        assert [each["name"] for each in pool["pools"]] == ["write", "read"]
        assert await ask(instance, "/breakers") == (200, {"breakers": []})
        assert await ask(instance, "/endpoints") == (200, {"discovery": [], "services": {}})
        assert (await ask(instance, "/sagas"))[0] == 404
        _, outbox = await ask(instance, "/outbox")
        assert {"relay", "topics", "parked", "relays"} <= outbox.keys()
        _, consumers = await ask(instance, "/consumers")
        assert [group["group"] for group in consumers["groups"]] == ["words.hear"]
    assert instance.admin_url is None


async def test_the_pool_names_the_route_the_function_and_the_line_that_hold_a_connection(
    settings: dict[str, object],
) -> None:
    async with words().instance(settings) as instance, aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.get(f"{instance.url}/words/slow"))

        async def holder() -> Any:
            _, document = await ask(instance, "/pool")
            found = [one for pool in document["pools"] for one in pool["holders"] if one["function"].endswith("slow")]
            return found[0] if found else None

        while (seen := await holder()) is None:
            await asyncio.sleep(0.01)
        assert seen["work"] == "GET /words/slow"
        assert "test_admin.py:" in seen["taken_at"]
        instance.parts.resources[Gate].open.set()  # type: ignore[attr-defined]  # it is one
        async with await request as answer:
            assert answer.status == 200
        assert await holder() is None


async def test_the_level_changes_for_this_instance_alone(
    settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    others = {**settings, "database_url": f"{settings['database_url']}.other"}
    async with words().instance(settings) as instance, words().instance(others) as other:
        assert await ask(instance, "/log-level") == (200, {"level": "INFO"})
        with caplog.at_level(logging.DEBUG):
            instance.telemetry.logger.debug("not yet")
            found = await ask(instance, "/log-level", method="PUT", json={"level": "debug"})
            assert found == (200, {"level": "DEBUG", "before": "INFO"})
            instance.telemetry.logger.debug("now it is")
            other.telemetry.logger.debug("nobody asked this one")
        said = [record.getMessage() for record in caplog.records]
        assert "now it is" in said
        assert not {"not yet", "nobody asked this one"} & set(said)
        assert await ask(other, "/log-level") == (200, {"level": "INFO"})


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"level": "LOUD"}', b'{"level": 1}', b'{"level": "' + b"x" * 2000 + b'"}']
)
async def test_a_level_that_is_none_is_refused(settings: dict[str, object], body: bytes) -> None:
    async with words().instance(settings) as instance:
        json = {"content-type": "application/json"}
        status, problem = await ask(instance, "/log-level", method="PUT", data=body, headers=json)
        assert (status, problem["status"]) == (400, 400)
        plain = {"content-type": "text/plain"}  # what a page of another origin may send unasked
        sent = b'{"level": "DEBUG"}'
        assert (await ask(instance, "/log-level", method="PUT", data=sent, headers=plain))[0] == 415
        assert await ask(instance, "/log-level") == (200, {"level": "INFO"})


async def test_a_page_with_a_name_of_its_own_for_the_loopback_reads_nothing(settings: dict[str, object]) -> None:
    async with (
        words().instance(settings) as instance,
        aiohttp.ClientSession() as session,
        session.get(f"{instance.admin_url}/info", headers={"host": "evil.example"}) as answer,
    ):
        assert answer.status == 400
        assert "words" not in await answer.text()


async def test_no_secret_is_in_what_is_told(settings: dict[str, object], postgres_url: str) -> None:
    secret = postgres_url.replace("://postgres@", "://postgres:hunter2hunter2@")
    async with words().instance({**settings, "database_url": secret}) as instance:
        for path in ("/info", "/health", "/pool", "/outbox", "/endpoints"):
            _, document = await ask(instance, path)
            assert "hunter2" not in str(document)
        assert "postgresql" in str((await ask(instance, "/info"))[1])


async def test_it_is_there_while_the_service_starts_and_until_all_else_is_closed(settings: dict[str, object]) -> None:
    opening = asyncio.Event()
    instance = words(opening=opening).instance(settings)
    starting = asyncio.create_task(instance.start())
    while instance.admin_url is None:
        await asyncio.sleep(0)
    assert (await ask(instance, "/health/ready"))[0] == 503
    assert (await ask(instance, "/info"))[0] == 200
    status, problem = await ask(instance, "/pool")
    assert (status, problem["detail"]) == (503, "the service is starting")
    opening.set()
    await starting
    async with aiohttp.ClientSession() as session:
        request = asyncio.create_task(session.get(f"{instance.url}/words/slow"))
        while not instance.parts.database.pools()[1].used:  # type: ignore[union-attr]  # it has one
            await asyncio.sleep(0.01)
        gate: Any = instance.parts.resources[Gate]
        stopping = asyncio.create_task(instance.stop())
        while (await ask(instance, "/health/ready"))[0] == 200:
            await asyncio.sleep(0)
        assert (await ask(instance, "/health"))[1]["state"] == "draining"
        gate.open.set()
        await stopping
        (await request).close()
    assert instance.admin_url is None


async def test_the_services_own_port_has_none_of_it(settings: dict[str, object]) -> None:
    async with words().instance(settings) as instance, aiohttp.ClientSession() as session:
        for path in ("/info", "/pool", "/log-level", "/breakers", "/endpoints", "/sagas", "/outbox", "/consumers"):
            async with session.get(instance.url + path) as answer:
                assert answer.status == 404


async def test_a_port_that_is_taken_is_named_in_one_sentence(settings: dict[str, object]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            await words().instance({**settings, "admin_port": port}).start()
    assert str(caught.value) == (
        f"WORDS_ADMIN_PORT: port {port} of 127.0.0.1 is taken by another program: stop it, or set another port"
    )


def test_in_production_it_stays_on_the_loopback_unless_somebody_answers_for_it() -> None:
    production: dict[str, object] = {"environment": "production", "allowed_hosts": ["words"], "admin_host": "0.0.0.0"}
    with pytest.raises(ConfigurationError, match="no log-in"):
        load(ServiceSettings, "words", overrides=production)
    assert load(ServiceSettings, "words", overrides={**production, "admin_exposed": True}).admin_host == "0.0.0.0"
    assert load(ServiceSettings, "words", overrides={**production, "admin_host": "::1"}).admin_host == "::1"


async def test_more_connections_than_the_server_has_are_warned_of_at_start(
    postgres_url: str, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with words().instance({**settings, "database_url": postgres_url, "replicas": 50}):
            pass
    (said,) = [record.getMessage() for record in caplog.records if "connections" in record.getMessage()]
    assert said.startswith("WORDS_DATABASE_POOL_SIZE: 50 processes * (10 pool + 5 overflow + 1 to listen)")
