"""Are a service's migrations sound? Each is taken forwards and backwards on a database with rows in its tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import sqlalchemy as sa

from microkit.db import Database
from microkit.db.migration import drift, moving
from microkit.db.scripts import MICROKIT, Script, Scripts, of_service
from microkit.errors import ConfigurationError
from microkit.service import Service
from microkit.testing.rows import Contents, Given, contents, described, fill, reflected

Changes = Mapping[str, Collection[str]]
"""By table: columns whose values the scripts change on purpose."""

Result = TypeVar("Result")

_OWN: Final = ("microkit_version", "schema_contract")
"""What may have rows in a database that is otherwise empty: how far microkit's own tables are."""


async def check_migrations(
    service: Service, database: Database, *, rows: Given | None = None, changes: Changes | None = None
) -> None:
    """Walks through the service's scripts on ``database``, which must be empty, with rows in every table at each step.

    Each step is taken forwards, backwards and forwards again; at the end all are taken back. A row that was there stays
    there, with the values of the columns that there are before and after, unless the script says ``forgets = "table:
    why"``, or ``changes`` names the column. Each step back leaves the tables as they were, the last one none. At the
    head the tables are those that the service declares.

    The rows are made up from the columns' types. ``rows`` says, by table, what they hold where that does not do:
    ``rows={"bill": lambda n: {"status": "open"}}``, ``n`` being another number for each row.

    Raises:
        AssertionError: the first thing that is not so, as a sentence.
        ConfigurationError: the service has no migrations, or more than one head, or the database is in use.
    """
    scripts, tables = service.declared.migrations, service.declared.tables
    if scripts is None:
        raise ConfigurationError(f"{service.name} has no migrations: give Service(...) migrations=")
    await _refuse_used(database)
    async with moving(database, MICROKIT) as move:
        await move("head")
    await check_scripts(of_service(scripts), [] if tables is None else [tables], database, rows=rows, changes=changes)


async def check_scripts(
    scripts: Scripts,
    tables: Sequence[sa.MetaData],
    database: Database,
    *,
    rows: Given | None = None,
    changes: Changes | None = None,
) -> None:
    """:func:`check_migrations` for a folder of scripts, and the tables that they are to make."""
    ordered = scripts.ordered
    if len(scripts.heads) > 1 or any(len(script.parents) > 1 for script in ordered):
        raise ConfigurationError(f"the migrations of {scripts.owner} are no single line: merge their heads first")
    await _refuse_used(database)
    async with moving(database, scripts) as move:
        walk = _Walk(scripts, database, move, rows or {}, changes or {})
        await walk.begin()
        for script in ordered:
            await walk.forwards(script)
            await walk.fill()
            await walk.backwards(script)
            await walk.forwards(script)
            if not all(each.rows for each in walk.contents.values()):  # it was taken back with its table
                await walk.fill()
    if found := await drift(database, tables):
        raise AssertionError(f"the migrations of {scripts.owner} do not make the tables that are declared: {found}")
    async with moving(database, scripts) as walk.move:
        for script in reversed(ordered):
            await walk.backwards(script)


async def _refuse_used(database: Database) -> None:
    """Whatever is in it would be gone: all scripts are taken back."""

    def used(connection: sa.Connection) -> list[str]:
        tables = reflected(connection, _OWN).sorted_tables
        return [table.name for table in tables if connection.execute(sa.select(table).limit(1)).first() is not None]

    async with database.engine.connect() as connection:
        if found := await connection.run_sync(used):
            raise ConfigurationError(
                f"the migrations are checked on an empty database, since all is taken back in the end; "
                f"{database.where} has rows in {', '.join(found)}"
            )


@dataclass
class _Walk:
    scripts: Scripts
    database: Database
    move: Callable[[str], Awaitable[list[str]]]
    rows: Given
    changes: Changes
    others: set[str] = field(default_factory=set)
    number: int = 0
    shapes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    tables: sa.MetaData = field(default_factory=sa.MetaData)
    contents: dict[str, Contents] = field(default_factory=dict)

    async def begin(self) -> None:
        await self.move("base")
        there = await self._read(lambda connection: sa.inspect(connection).get_table_names())
        self.others = {"schema_version", "microkit_version", *there}
        self.shapes["base"] = {}

    async def forwards(self, script: Script) -> None:
        await self._step(script, script.revision, "upgrade")
        shape = described(self.tables)
        self._same_shape(self.shapes.setdefault(script.revision, shape), shape, script, "after it was taken back")

    async def backwards(self, script: Script) -> None:
        parent = script.parents[0] if script.parents else "base"
        await self._step(script, parent, "downgrade")
        self._same_shape(self.shapes[parent], described(self.tables), script, "when it is taken back")

    async def fill(self) -> None:
        """Two rows for each table, one with all its columns and one with those that it needs."""
        async with self.database.engine.begin() as connection:
            for _ in range(2):
                self.number += 1
                await connection.run_sync(fill, self.tables, self.number, self.rows)
            self.contents = await connection.run_sync(contents, self.tables)

    async def _step(self, script: Script, target: str, way: str) -> None:
        before = self.contents
        await self.move(target)
        self.tables = await self._read(lambda connection: reflected(connection, self.others))
        after = self.contents = await self._read(lambda connection: contents(connection, self.tables))
        forgotten = {name.strip() for name in (script.forgets or "").partition(":")[0].split(",")}
        for table, there in before.items():
            if table in after:
                lost = there.missing_from(after[table], self.changes.get(table, ()))
            else:  # on the way back it goes with the script that made it
                lost = there.rows if way == "upgrade" else []
            if lost and table not in forgotten:
                raise AssertionError(
                    f"{script.file.name}: {way}() loses or changes {len(lost)} rows of {table}, such as {lost[0]}. "
                    f'Keep them; or say in the script what is lost, and why: forgets = "{table}: …"; or, where values '
                    f"are changed on purpose, changes={{{table!r}: […]}}"
                )

    def _same_shape(self, meant: dict[str, list[str]], found: dict[str, list[str]], script: Script, when: str) -> None:
        if meant == found:
            return
        differing = [table for table in sorted(meant.keys() | found.keys()) if meant.get(table) != found.get(table)]
        one = differing[0]
        raise AssertionError(
            f"{script.file.name}: {when}, {', '.join(differing)} is not as before: {one} had {meant.get(one)} and has "
            f"{found.get(one)}"
        )

    async def _read(self, work: Callable[[sa.Connection], Result]) -> Result:
        async with self.database.engine.connect() as connection:
            return await connection.run_sync(work)
