"""The migrations of billpay's services, forwards and backwards with rows in the tables."""

from __future__ import annotations

import pytest

from microkit import Database, Service
from microkit.db.linting import lint
from microkit.db.scripts import of_service
from microkit.testing.migrations import check_migrations
from reference.billpay.billing.service import service as billing
from reference.billpay.ledger.service import service as ledger
from reference.billpay.payment.service import service as payment
from reference.billpay.user.service import service as user

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("service", [user, payment, billing, ledger], ids=lambda service: service.name)
async def test_migrations_keep_rows_in_both_directions_and_make_the_tables_of_the_models(
    service: Service, database: Database
) -> None:
    await check_migrations(service, database)


@pytest.mark.parametrize("service", [user, payment, billing, ledger], ids=lambda service: service.name)
def test_what_an_older_running_version_would_not_survive_is_declared(service: Service) -> None:
    assert service.declared.migrations is not None

    assert [finding for finding in lint(of_service(service.declared.migrations)) if finding.accepted is None] == []
