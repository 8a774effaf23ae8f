"""The user service as it runs: real server, real database (SQLite and PostgreSQL in turn), its own migrations."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from microkit.client import HttpCaller, connect
from microkit.servers.ports import free_ports
from reference.billpay.contracts.user import Sessions, Users
from reference.billpay.user.service import service
from reference.billpay.user.tests.running import Start, UserService, quick_passwords


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def start(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts the service on a database that is the test's own; a second start finds what the first left."""
    monkeypatch.setattr("reference.billpay.user.service.Passwords", quick_passwords)

    @contextlib.asynccontextmanager
    async def start(**settings: object) -> AsyncIterator[UserService]:
        (port,) = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        found = {
            "port": port,
            "database_url": database_url,
            "migrate_on_start": True,
            "auth_issuer": "https://user.billpay.example",
            "auth_audience": "billpay",
            "auth_jwks_url": f"{url}/.well-known/jwks.json",
            "services": {"user": [url]},
            "address_attempts": 1000,
            "access_log": False,
            # A hundred requests at once may take their time on a slow machine.
            "database_pool_timeout": 60.0,
            "request_timeout": 60.0,
            "load_shedding": False,
            # With that much time a caller would wait out a 429, whose minute may be shorter by now.
            "clients": {"user": {"attempts": 1, "connect_timeout": 60.0, "queue_timeout": 60.0}},
            **settings,
        }
        async with service.instance(found) as instance:
            caller = instance.caller(Users)
            assert isinstance(caller, HttpCaller)
            yield UserService(instance, connect(Users, caller), connect(Sessions, caller))

    return start


@pytest.fixture
async def user(anyio_backend: str, start: Start) -> AsyncIterator[UserService]:
    async with start() as running:
        yield running
