"""A server on which each service has a database: what it is told by its URL, and why it makes none."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import make_url

from microkit.db.server import DatabaseServer
from microkit.errors import ConfigurationError
from microkit.testing.postgres import Cluster

pytestmark = pytest.mark.anyio


async def test_a_url_as_providers_write_it_makes_databases(postgres_cluster: Cluster) -> None:
    server = DatabaseServer(f"{postgres_cluster.url('postgres')}&sslmode=prefer")
    name = f"told{uuid4().hex[:8]}"
    await server.make([server.url(name)])
    try:
        assert postgres_cluster.psql(f"SELECT count(*) FROM pg_database WHERE datname = '{name}'") == "1"
    finally:
        postgres_cluster.psql(f'DROP DATABASE "{name}" WITH (FORCE)')


async def test_a_user_who_may_make_none_is_told_so(postgres_role_url: str) -> None:
    server = DatabaseServer(postgres_role_url)
    with pytest.raises(ConfigurationError, match=r"guarded:\*\*\*@.*: this user may create none: grant it CREATEDB"):
        await server.make([server.url("shop", "till")])
    wrong = DatabaseServer(make_url(postgres_role_url).set(password="sesame").render_as_string(hide_password=False))
    with pytest.raises(ConfigurationError, match="the server refuses this user with this password; see both") as caught:
        await wrong.make([wrong.url("shop", "till")])
    assert "sesame" not in str(caught.value)
