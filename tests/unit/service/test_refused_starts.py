"""What cannot work is refused before a service starts, in one sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkit import ConfigurationError, DefinitionError, Instance, MicrokitError, Service
from tests.unit.service.notes import Base, Notes, notes_service

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["", "bad name!", "Billing", "-billing", "billing_2"])
def test_a_name_that_no_setting_can_have_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="lower-case words"):
        Service(name)


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
