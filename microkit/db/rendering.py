"""The SQL that scripts are, read without a database, for ``microkit migrate lint``."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util.pyfiles import load_python_file

from microkit.db.scripts import Script, Scripts


@dataclass(slots=True)
class Rendered:
    """A script as SQL; ``trouble`` says why it is none: it reads rows, and decides by them what to do."""

    script: Script
    statements: list[str] = field(default_factory=list)
    trouble: str | None = None


def rendered(scripts: Scripts, dialect: str) -> list[Rendered]:
    """What the upgrade of each script does on ``dialect``, oldest first."""
    return [_one(script, dialect) for script in scripts.ordered]


def _one(script: Script, dialect: str) -> Rendered:
    buffer = _Statements()
    context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": buffer})
    found = Rendered(script, buffer.statements)
    try:
        with Operations.context(context):
            _loaded(script.file).upgrade()
    except Exception as error:  # noqa: BLE001  whatever a user's script may raise
        found.trouble = f"{type(error).__name__}: {error}"
    return found


def _loaded(file: Path) -> Any:
    return load_python_file(str(file.parent), file.name)


class _Statements(StringIO):
    """Where Alembic writes each statement as it comes, ended by a semicolon."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def write(self, text: str, /) -> int:
        if statement := text.strip():
            self.statements.append(statement)
        return len(text)
