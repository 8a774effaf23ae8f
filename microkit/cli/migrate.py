"""``microkit migrate`` and its commands."""

from __future__ import annotations

import asyncio
import json as json_module
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from sqlalchemy import make_url

from microkit.cli.load import find_service, load_system
from microkit.db import Database
from microkit.db.migration import migrate, revise
from microkit.db.migration import sql as as_sql
from microkit.db.options import PoolOptions
from microkit.db.scripts import Scripts, of_service, sets
from microkit.db.standing import Standing, standing
from microkit.db.turn import PATIENCE
from microkit.errors import ConfigurationError
from microkit.service import Service
from microkit.telemetry import Telemetry

Result = TypeVar("Result")


def up(service: str, system: str | None, *, target: str, check: bool, wait: float | None, json: bool) -> bool:
    """Runs the migrations that are missing, or with ``check`` lists them; returns whether nothing is missing now.

    Raises:
        ConfigurationError: there is no such service, it has no database, or the database cannot be reached.
    """
    declared = _storing(service, system)
    scripts = declared.declared.migrations

    async def work(database: Database) -> tuple[list[str], Standing]:
        stands = await standing(database, scripts)
        if stands.broken:
            raise ConfigurationError(str(stands.said(service)))
        if check or (target == "head" and stands.newer and not stands.pending):  # as a service starts on it
            return [], stands
        patience = PATIENCE if wait is None else wait
        done = await migrate(database, scripts, target=target, patience=patience, forwards=True)
        return done, await standing(database, scripts)

    done, stands = asyncio.run(_with_database(declared, work))
    left, said = stands.pending, stands.said(service)
    if json:
        _print_json({"service": service, "applied": done, "pending": left, "said": said})
    elif said:
        _print(said[0].upper() + said[1:] + ".")
    else:
        for revision in left if check else done:
            _print(f"{'missing' if check else 'applied'}: {revision}")
        if not (left if check else done):
            _print(f"The database of {service} is up to date.")
    return not left or (not check and target != "head")


def down(service: str, system: str | None, *, to: str, yes: bool, json: bool) -> bool:
    """Takes scripts of the service back, if ``yes``; otherwise says which. Returns whether it was done."""
    declared = _storing(service, system)
    scripts = _own_scripts(declared)

    async def work(database: Database) -> tuple[list[str], list[str]]:
        stands = await standing(database, scripts.folder)
        if stands.newer:
            raise ConfigurationError(str(stands.said(service)))
        current = stands.current[scripts.version_table]
        at = scripts.resolved(current, to)
        if not current:
            return [], []
        if at != "base" and at not in scripts.known:
            raise ConfigurationError(
                f"{service} has no revision {to!r} to go back to; it has: {', '.join(scripts.known)}"
            )
        kept = scripts.reached([] if at == "base" else [at])
        back = [each.revision for each in reversed(scripts.ordered) if each.revision in scripts.reached(current) - kept]
        return back, await migrate(database, scripts.folder, target=at) if yes and back else []

    back, done = asyncio.run(_with_database(declared, work))
    found = [_script(scripts, revision, "taken back" if done else "to be taken back") for revision in back]
    if json:
        _print_json({"service": service, "done": bool(done) or not back, "scripts": found})
    else:
        for each in found:
            forgets = f"; it forgets {each['forgets']}" if each["forgets"] else ""
            _print(f"{each['state']}: {service} {each['revision']} {each['title']}{forgets}")
        if not back:
            _print("There is nothing to take back.")
        elif not done:
            _print("What they made goes, with what is in it: tables, columns. Stop what needs it, and say --yes")
    return bool(done) or not back


def status(service: str, system: str | None, *, json: bool) -> None:
    """Prints every script of a service's database, and whether the database has seen it."""
    declared = _storing(service, system)
    stands: Standing = asyncio.run(_with_database(declared, lambda database: _standing(database, declared)))
    lines = []
    for each in sets(declared.declared.migrations):
        waiting = {name.removeprefix(f"{each.owner} ") for name in stands.pending if name.startswith(f"{each.owner} ")}
        at = stands.current[each.version_table]
        for script in each.ordered:
            state = "pending" if script.revision in waiting else "current" if script.revision in at else "applied"
            lines.append({"scripts": each.owner, **_script(each, script.revision, state)})
    said = stands.said(service)
    if json:
        _print_json({"service": service, "scripts": lines, "newer": stands.newer, "said": said})
        return
    for line in lines:
        _print(f"{line['state']:<8} {line['scripts']} {line['revision']}  {line['title']}")
        for what in ("contract", "forgets"):
            if line[what]:
                _print(f"{'':<9}{what}: {line[what]}")
    if said:
        _print(said[0].upper() + said[1:] + ".")


def new(service: str, message: str, system: str | None, *, database: str | None, json: bool) -> None:
    """Drafts a script that makes of a scratch database what the service's tables are."""
    declared = _storing(service, system)
    tables, folder = declared.declared.tables, declared.declared.migrations
    if tables is None or folder is None:
        raise ConfigurationError(f'{service} needs both: Service(..., tables=Base.metadata, migrations=Path("…"))')
    (folder / "versions").mkdir(parents=True, exist_ok=True)  # the first has no folder yet

    async def work(scratch: Database) -> Path:
        await migrate(scratch, folder)
        return await revise(scratch, folder, tables, message)

    with TemporaryDirectory() as place:
        url = database or f"sqlite+aiosqlite:///{Path(place, 'scratch.db')}"
        file = asyncio.run(_with_database(declared, work, url=url))
    if json:
        _print_json({"service": service, "file": str(file)})
    else:
        _print(
            f"{file}\nIt is a draft: read it, see to the rows that are there, and run microkit migrate lint {service}"
        )


def sql(service: str, system: str | None, *, new_database: bool, json: bool) -> None:
    """Prints what ``up`` would do, as SQL."""
    declared = _storing(service, system)
    scripts = declared.declared.migrations
    dialect = make_url(declared.settings().database_url.get_secret_value()).get_backend_name()
    current: dict[str, set[str]] = {}
    if not new_database:
        current = asyncio.run(_with_database(declared, lambda database: _standing(database, declared))).current
    text = as_sql(scripts, "postgresql" if dialect == "postgres" else dialect, current)
    if json:
        _print_json({"service": service, "sql": text})
    else:
        _print(text.rstrip() or f"-- The database of {service} is up to date.")


def lint(services: Sequence[str], system: str | None, *, since: str | None, json: bool) -> bool:
    """Prints what there is to say of the scripts; returns whether nothing is refused."""
    from microkit.db.linting import lint as look  # noqa: PLC0415  an extra

    _, found = load_system(system)
    chosen = [find_service(found, name) for name in services] or [
        each for each in found.services if each.declared.migrations is not None
    ]
    findings = [finding for each in chosen for finding in look(_own_scripts(each), since=since)]
    refused = [finding for finding in findings if finding.accepted is None]
    if json:
        told = [
            {
                "service": each.owner, "revision": each.revision, "file": each.file, "kind": each.judgement.kind,
                "rule": each.judgement.rule, "said": each.judgement.said, "instead": each.judgement.instead,
                "statement": each.statement, "accepted": each.accepted,
            }
            for each in findings
        ]  # fmt: skip
        _print_json({"ok": not refused, "services": [each.name for each in chosen], "findings": told})
        return not refused
    for each in findings:
        told_of = each.judgement
        _print(f"{'refused' if each.accepted is None else 'accepted'}  {each.owner} {each.revision} ({each.file}): "
               f"{told_of.kind}, {told_of.rule}")  # fmt: skip
        _print(f"  {each.statement[:200]}")
        _print(f"  {told_of.said}.")
        _print(f"  Instead: {told_of.instead}." if each.accepted is None else f"  It says: {each.accepted}.")
    names = ", ".join(each.name for each in chosen)
    _print(f"{len(refused)} refused, {len(findings) - len(refused)} accepted in the migrations of {names}.")
    return not refused


def _storing(service: str, system: str | None) -> Service:
    _, found = load_system(system)
    declared = find_service(found, service)
    if not declared.declared.stores:
        raise ConfigurationError(f"The service {service} has no database")
    return declared


def _own_scripts(service: Service) -> Scripts:
    if service.declared.migrations is None:
        raise ConfigurationError(f"{service.name} has no migrations: give Service(...) migrations=")
    return of_service(service.declared.migrations)


def _script(scripts: Scripts, revision: str, state: str) -> dict[str, str | None]:
    script = scripts.known[revision]
    said = {"contract": script.contract, "locks": script.locks, "forgets": script.forgets}
    return {"revision": revision, "title": script.title, "state": state, **said}


async def _standing(database: Database, service: Service) -> Standing:
    return await standing(database, service.declared.migrations)


async def _with_database(
    service: Service, work: Callable[[Database], Awaitable[Result]], *, url: str | None = None
) -> Result:
    async with _opened(service, url) as database:
        return await work(database)


@asynccontextmanager
async def _opened(service: Service, url: str | None) -> AsyncIterator[Database]:
    telemetry = Telemetry(service.name, exporter="none")
    settings = service.settings()
    where = url or settings.database_url.get_secret_value()
    options = PoolOptions(pgbouncer=settings.database_pgbouncer and url is None)
    database = Database(where, telemetry=telemetry, options=options)
    try:
        await database.start()
        yield database
    finally:
        await database.close()
        await telemetry.close()


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _print_json(document: object) -> None:
    _print(json_module.dumps(document))
