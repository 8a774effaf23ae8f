"""A folder of Alembic scripts, read without importing Alembic or them: starting a service costs no more than that."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from microkit.errors import ConfigurationError

FRAMEWORK: Final = Path(__file__).parent / "framework"


@dataclass(frozen=True)
class Scripts:
    """``folder`` holds ``versions/*.py``; ``version_table`` says how far a database is; ``owner`` is for messages."""

    folder: Path
    version_table: str
    owner: str

    @property
    def versions(self) -> Path:
        return self.folder / "versions"

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Each revision with those it comes after.

        Raises:
            ConfigurationError: the folder is missing, or a script has no ``revision``.
        """
        if not self.versions.is_dir():
            raise ConfigurationError(f"{self.owner} has no folder {self.versions} with its migrations")
        return dict(_read(file) for file in sorted(self.versions.glob("*.py")) if not file.name.startswith("_"))

    @property
    def heads(self) -> set[str]:
        return set(self.parents) - {parent for parents in self.parents.values() for parent in parents}

    def reached(self, revisions: Iterable[str]) -> set[str]:
        """The revisions and all that come before them; one that is not ours has none."""
        seen: set[str] = set()
        left = list(revisions)
        while left:
            revision = left.pop()
            if revision not in seen:
                seen.add(revision)
                left.extend(self.parents.get(revision, ()))
        return seen

    def missing(self, current: set[str]) -> list[str]:
        """What a database at ``current`` has not seen, oldest first.

        Nothing where ``current`` holds a revision that is not ours: a newer program has been there.
        """
        if not current <= set(self.parents):
            return []
        done = self.reached(current)
        ordered: list[str] = []
        while left := [revision for revision in self.parents if revision not in done]:
            ready = [revision for revision in left if done.issuperset(self.parents[revision])]
            if not ready:
                raise ConfigurationError(f"the migrations of {self.owner} do not follow from each other: {left}")
            ordered += ready
            done.update(ready)
        return ordered


def _read(file: Path) -> tuple[str, tuple[str, ...]]:
    found: dict[str, object] = {}
    for node in ast.parse(file.read_text("utf-8"), str(file)).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        if name in ("revision", "down_revision"):
            found[name] = ast.literal_eval(value)
    revision, parents = found.get("revision"), found.get("down_revision")
    if not isinstance(revision, str):
        raise ConfigurationError(f'{file} is no migration: it has no line like revision = "0001"')
    if isinstance(parents, str):
        return revision, (parents,)
    return revision, tuple(str(parent) for parent in parents) if isinstance(parents, (tuple, list)) else ()
