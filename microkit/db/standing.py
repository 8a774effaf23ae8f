"""Where a database stands among the scripts, read without Alembic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text

from microkit.db.contracts import contracts
from microkit.db.database import Database
from microkit.db.scripts import Scripts, sets


@dataclass(frozen=True, slots=True)
class Standing:
    """``current`` has the revisions by the table that says them, ``pending`` what the database has not seen.

    ``newer`` are revisions that we do not know, since a newer version has migrated, and ``broken`` those of them that
    were declared to be steps that a version as old as this one does not survive, with the reason.
    """

    current: dict[str, set[str]]
    pending: list[str]
    newer: list[str]
    broken: list[str]

    def said(self, service: str) -> str | None:
        """What there is to say about a database that is newer than the program, in one sentence."""
        if self.broken:
            return (
                f"the database of {service} is at {', '.join(self.newer)}, which this version does not know, and one "
                f"as old as this does not survive {'; '.join(self.broken)}: start a version that knows it, or take "
                f"the step back with that version's `microkit migrate down {service}`"
            )
        if self.newer:
            return (
                f"the database of {service} is at {', '.join(self.newer)}, which this version does not know: a newer "
                "version has migrated it. This one goes on: no step was declared to be one that it does not survive"
            )
        return None


async def standing(database: Database, scripts: Path | None) -> Standing:
    """How far the database is.

    Raises:
        ConfigurationError: ``scripts`` holds no migrations.
    """
    every = sets(scripts)
    async with database.transaction(read_only=True) as tx:  # which waits for no writer
        return await (await tx.session.connection()).run_sync(_standing, every)


def current_of(connection: Connection, every: Sequence[Scripts]) -> dict[str, set[str]]:
    """The revisions that the database is at, by the table that says so."""
    there = inspect(connection)
    return {
        each.version_table: set(connection.scalars(text(f"SELECT version_num FROM {each.version_table}")))  # noqa: S608  a name of ours
        if there.has_table(each.version_table)
        else set()
        for each in every
    }


def _standing(connection: Connection, every: Sequence[Scripts]) -> Standing:
    current = current_of(connection, every)
    pending = [f"{each.owner} {revision}" for each in every for revision in each.missing(current[each.version_table])]
    newer = [f"{each.owner} {name}" for each in every for name in sorted(current[each.version_table] - set(each.known))]
    return Standing(current, pending, newer, _broken(connection, every) if newer else [])


def _broken(connection: Connection, every: Sequence[Scripts]) -> list[str]:
    if not inspect(connection).has_table(contracts.name):
        return []
    rows = connection.execute(select(contracts).order_by(contracts.c.applied_at, contracts.c.revision)).all()
    return [
        f"{each.owner} {row.revision} ({row.reason})"
        for each in every
        for row in rows
        if row.scripts == each.version_table and not {row.revision, row.needs} & set(each.known)
    ]
