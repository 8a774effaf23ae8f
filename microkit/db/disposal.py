"""Connections that come back after their pool was given up: SQLAlchemy would keep them open in it for good."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

_AGE: Final = "disposals"


def close_what_comes_late(engine: Engine) -> None:
    """Has connections closed that were in use while ``engine`` was disposed of."""
    disposals = 0

    @event.listens_for(engine, "engine_disposed")
    def disposed(_: Engine) -> None:
        nonlocal disposals
        disposals += 1

    @event.listens_for(engine, "connect")
    def connected(_: Any, record: ConnectionPoolEntry) -> None:
        record.info[_AGE] = disposals

    @event.listens_for(engine, "checkin")
    def came_back(_: Any, record: ConnectionPoolEntry) -> None:
        if record.info.get(_AGE) != disposals:
            record.invalidate()
