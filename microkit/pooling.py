"""From the settings of a service to its pool, and to what all its processes together may open."""

from __future__ import annotations

from microkit.db.facts import Share
from microkit.db.options import PoolOptions
from microkit.settings import ServiceSettings


def pool_options(settings: ServiceSettings) -> PoolOptions:
    """How the settings want connections to be kept."""
    replica = settings.database_replica_url
    return PoolOptions(
        recycle=settings.database_recycle,
        pre_ping=settings.database_pre_ping,
        pgbouncer=settings.database_pgbouncer,
        replica_url=replica.get_secret_value() if replica is not None else None,
        leak_after=settings.database_leak_after,
    )


def share_of(settings: ServiceSettings) -> Share:
    """What the service's processes may take of the server's connections."""
    return Share(
        pool=settings.database_pool_size,
        overflow=settings.database_max_overflow,
        replicas=settings.replicas,
        workers=settings.workers,
        beside=0 if settings.database_pgbouncer else 1,
        pooled=settings.database_pgbouncer,
    )
