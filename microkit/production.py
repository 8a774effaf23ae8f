"""What is only safe on a laptop, and refused in production: asked before a service starts, and by ``doctor``."""

from __future__ import annotations

from microkit.declared import Declared
from microkit.settings import ServiceSettings


def refusals(declared: Declared, settings: ServiceSettings) -> list[str]:
    """Why the service would not start with these settings, a sentence each; empty where nothing speaks against it."""
    if settings.environment != "production" or not declared.stores:
        return []
    found = []
    if "database_url" not in settings.origin.places:
        found.append(
            f"{settings.origin.prefix}DATABASE_URL is missing: in production no database is chosen for a service; "
            f"an example: postgresql+asyncpg://{declared.name}:...@db/{declared.name}"
        )
    if declared.migrations is None and declared.tables is not None:
        found.append(
            f"{declared.name} has tables and no migrations: in production no table is made silently. "
            "Give Service(...) migrations=, the folder with its Alembic versions"
        )
    return found
