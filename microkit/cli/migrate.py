"""``microkit migrate``."""

from __future__ import annotations

import asyncio
import json as json_module
import sys

from microkit.cli.load import find_service, load_system
from microkit.db import Database
from microkit.db.migration import migrate as run_migrations
from microkit.db.migration import pending
from microkit.errors import ConfigurationError
from microkit.service import Service
from microkit.telemetry import Telemetry


def migrate(service: str, system: str | None, *, check: bool, json: bool) -> bool:
    """Runs the migrations that are missing, or with ``check`` lists them; returns whether nothing is missing now.

    Raises:
        ConfigurationError: there is no such service, it has no database, or the database cannot be reached.
    """
    _, found = load_system(system)
    declared = find_service(found, service)
    if not declared.declared.stores:
        raise ConfigurationError(f"The service {service} has no database")
    missing = asyncio.run(_migrate(declared, check=check))
    done = [] if check else missing
    left = missing if check else []
    if json:
        sys.stdout.write(json_module.dumps({"service": service, "applied": done, "pending": left}) + "\n")
    else:
        for revision in missing:
            sys.stdout.write(f"{'missing' if check else 'applied'}: {revision}\n")
        if not missing:
            sys.stdout.write(f"The database of {service} is up to date.\n")
    return not left


async def _migrate(service: Service, *, check: bool) -> list[str]:
    settings = service.settings()
    telemetry = Telemetry(service.name, exporter="none")
    database = Database(settings.database_url.get_secret_value(), telemetry=telemetry)
    try:
        await database.start()
        missing = list(await pending(database, service.declared.migrations))
        if missing and not check:
            await run_migrations(database, service.declared.migrations)
    finally:
        await database.close()
        await telemetry.close()
    return missing
