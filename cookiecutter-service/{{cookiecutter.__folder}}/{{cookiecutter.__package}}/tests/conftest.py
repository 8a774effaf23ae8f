"""The running service, as its tests find it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from microkit.testing.system import SystemUnderTest, run_system

from {{ cookiecutter.__package }}.contracts import {{ cookiecutter.__contract }}
from {{ cookiecutter.__package }}.system import system


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path, database_url: str) -> AsyncIterator[SystemUnderTest]:
    """The service on a free port; each test runs on SQLite and on PostgreSQL."""
    settings = {"{{ cookiecutter.service_name }}": {"database_url": database_url, "average_from": 2}}
    async with run_system(system, tmp_path, settings=settings) as started:
        yield started


@pytest.fixture
def client(running: SystemUnderTest) -> {{ cookiecutter.__contract }}:
    """Calls to the service, over HTTP."""
    return running.client({{ cookiecutter.__contract }})
