"""All that touches Alembic; imported only when there is something to migrate."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import api
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.util.exc import CommandError
from sqlalchemy import Connection, MetaData, text

from microkit.db.scripts import Scripts
from microkit.errors import ConfigurationError


def _config(connection: Connection | None, environment: Path, scripts: Scripts, **attributes: Any) -> Config:
    config = Config(cmd_opts=Namespace(quiet=True))
    config.set_main_option("path_separator", "newline")  # a folder's name may hold any other character
    config.set_main_option("script_location", str(environment).replace("%", "%%"))
    config.set_main_option("version_locations", str(scripts.versions).replace("%", "%%"))
    contracts = {script.revision: script for script in scripts.known.values() if script.contract}
    config.attributes.update(connection=connection, version_table=scripts.version_table, contracts=contracts)
    config.attributes.update(attributes)
    return config


def move(connection: Connection, environment: Path, scripts: Scripts, current: set[str], target: str) -> None:
    """Upgrades or downgrades to ``target``.

    Raises:
        ConfigurationError: there is no such revision.
    """
    config = _config(connection, environment, scripts)
    try:
        (command.downgrade if scripts.behind(current, target) else command.upgrade)(config, target)
    except CommandError as error:
        raise ConfigurationError(f"the migrations of {scripts.owner}: {error}") from error
    if connection.dialect.name == "sqlite" and (broken := connection.execute(text("PRAGMA foreign_key_check")).all()):
        # Foreign keys are off meanwhile, since SQLite changes a table by copying it and dropping the old one.
        raise ConfigurationError(f"the migrations of {scripts.owner} leave rows without their parents: {broken[:5]}")


def written_out(environment: Path, scripts: Scripts, dialect: str, current: set[str]) -> str:
    """The SQL from ``current`` to the head; see :func:`microkit.db.migration.sql`."""
    output = StringIO()
    config = _config(None, environment, scripts, dialect=dialect, output=output)
    if len(current) > 1:
        raise ConfigurationError(f"the migrations of {scripts.owner} have several heads: migrate to one of them first")
    try:
        command.upgrade(config, f"{next(iter(current), 'base')}:head", sql=True)
    except Exception as error:  # whatever a user's script may raise
        done = output.getvalue().count("-- Running upgrade")
        script = scripts.known[scripts.missing(current)[max(done - 1, 0)]]
        raise ConfigurationError(
            f"{script.file.name} cannot be written out without a database ({type(error).__name__}: {error}): run it"
        ) from error
    return output.getvalue()


def differences(connection: Connection, tables: Sequence[MetaData]) -> list[str]:
    """What autogenerate would do, in words."""
    found: list[str] = []
    for metadata in tables:
        context = MigrationContext.configure(
            connection, opts={"include_name": _only(metadata), "compare_type": True, "target_metadata": metadata}
        )
        found += [str(change) for change in api.compare_metadata(context, metadata)]
    return found


def new_script(connection: Connection, environment: Path, scripts: Scripts, tables: MetaData, message: str) -> Path:
    """Writes a script; see :func:`microkit.db.migration.revise`."""
    config = _config(connection, environment, scripts, tables=tables, include_name=_only(tables))
    number = f"{len(scripts.parents) + 1:04}"
    try:
        made = command.revision(config, message, autogenerate=True, rev_id=number, version_path=str(scripts.versions))
    except CommandError as error:
        raise ConfigurationError(f"the migrations of {scripts.owner}: {error}") from error
    if made is None or isinstance(made, list):
        raise ConfigurationError(f"Alembic wrote no script for {scripts.owner}")
    return Path(made.path)


def _only(metadata: MetaData) -> Any:
    names = {table.name for table in metadata.tables.values()}

    def include(name: str | None, kind: str, parents: object) -> bool:
        return kind != "table" or name in names

    return include
