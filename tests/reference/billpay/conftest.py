"""User, payment, billing and the sandbox ledger in one process, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from microkit import System
from microkit.testing.system import run_system
from reference.billpay.billing.service import service as billing_service
from reference.billpay.ledger.service import service as ledger_service
from reference.billpay.payment.service import service as payment_service
from reference.billpay.user.service import service as user_service
from tests.reference.billpay.people import Billpay, WayToHorizon


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Of the module, because its tests share one running system: starting it takes longer than most of them."""
    return "asyncio"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(f"billpay on {name}")) for name in ("sqlite", "postgresql")
    ],
)
def database_urls(request: pytest.FixtureRequest) -> Any:
    """Settings of the services' databases: files in their folder, or PostgreSQL."""
    if request.param == "sqlite":
        yield {}
        return
    cluster = request.getfixturevalue("postgres_cluster")
    names = {service: cluster.create() for service in ("user", "payment", "billing", "ledger")}
    yield {service: {"database_url": cluster.url(name)} for service, name in names.items()}
    for name in names.values():
        cluster.drop(name)


@pytest.fixture(scope="module")
async def shared_billpay(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory, database_urls: Any
) -> AsyncIterator[Billpay]:
    system = System("billpay", [user_service, payment_service, billing_service, ledger_service], issuer="user")
    async with WayToHorizon().open() as way:
        settings: dict[str, dict[str, object]] = {
            "ledger": {"close_interval": 0.05, "idle_interval": 0.2, "submit_timeout": 2.0},
            "payment": {"horizon_url": way.url, "payment_window": 2.0, "history_lag": 1.0, "submit_timeout": 3.0},
            "billing": {},
            "user": {},
        }
        for service in settings:
            settings[service] |= database_urls.get(service, {})
        async with run_system(system, tmp_path_factory.mktemp("billpay"), settings=settings) as running:
            way.target = running.urls["ledger"]
            yield Billpay(running, way)


@pytest.fixture
def billpay(shared_billpay: Billpay) -> Billpay:
    """The shared system, its way to Horizon open and its log of submissions empty."""
    shared_billpay.way.clear()
    return shared_billpay
