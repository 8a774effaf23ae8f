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

_SENTENCES: Final = ("contract", "locks", "forgets", "checked")


@dataclass(frozen=True, slots=True)
class Script:
    """One script: what it says of itself, in assignments on its top level.

    The last four are sentences by which its author takes something upon himself: an older running version does not
    survive it; it holds writers up; rows that were there before are not there after it, or after going back; it cannot
    be read as SQL, and has been read by a person. ``needs`` is the revision that a running version must know to survive
    a contract: the one before, unless the script says otherwise.
    """

    revision: str
    parents: tuple[str, ...]
    file: Path
    title: str
    needs: str
    contract: str | None = None
    locks: str | None = None
    forgets: str | None = None
    checked: str | None = None


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
    def known(self) -> dict[str, Script]:
        """The scripts by their revisions.

        Raises:
            ConfigurationError: the folder is missing, a script has no ``revision``, or two have the same.
        """
        if not self.versions.is_dir():
            raise ConfigurationError(f"{self.owner} has no folder {self.versions} with its migrations")
        found: dict[str, Script] = {}
        for file in sorted(self.versions.glob("*.py")):
            if file.name.startswith("_"):
                continue
            script = _read(file)
            if (other := found.setdefault(script.revision, script)) is not script:
                raise ConfigurationError(f"{other.file} and {file} are both revision {script.revision!r}")
        for script in found.values():
            if script.needs not in found and script.needs not in script.parents:
                raise ConfigurationError(f"{script.file}: needs = {script.needs!r} is no revision of {self.owner}")
        return found

    @cached_property
    def parents(self) -> dict[str, tuple[str, ...]]:
        """Each revision with those it comes after."""
        return {revision: script.parents for revision, script in self.known.items()}

    @property
    def ordered(self) -> list[Script]:
        """All of them, oldest first."""
        return [self.known[revision] for revision in self.missing(set())]

    @property
    def heads(self) -> set[str]:
        return set(self.parents) - {parent for parents in self.parents.values() for parent in parents}

    def check_end(self) -> None:
        """That there is one way to the end, and not two that were begun at the same script, by two people for instance.

        Raises:
            ConfigurationError: there are several.
        """
        if len(self.heads) > 1:
            raise ConfigurationError(
                f"the migrations of {self.owner} end in {' and '.join(sorted(self.heads))}: let one of them come after "
                "the other (its down_revision), or write one that comes after both"
            )

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

    def resolved(self, current: set[str], target: str) -> str:
        """``target`` without counting from where the database is, so that it may be tried again: ``-1`` as a revision.

        One that cannot be counted along a single line is left to Alembic.
        """
        steps = int(target[1:]) if target.startswith("-") and target[1:].isdigit() else 0
        at = next(iter(current)) if len(current) == 1 else None
        while steps and at is not None and len(parents := self.parents[at]) <= 1:
            at = parents[0] if parents else None
            steps -= 1
            if at is None and not steps:
                return "base"
        return target if steps or at is None or not target.startswith("-") else at

    def behind(self, current: set[str], target: str) -> bool:
        """Whether to go from ``current`` to ``target`` is to go back."""
        return target == "base" or target.startswith("-") or target in self.reached(current) - current

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


MICROKIT: Final = Scripts(FRAMEWORK, "microkit_version", "microkit")
"""The scripts of microkit's own tables."""


def of_service(scripts: Path) -> Scripts:
    """The scripts of the service whose folder is the parent of ``scripts``."""
    return Scripts(scripts, "schema_version", scripts.resolve().parent.name)


def sets(scripts: Path | None) -> list[Scripts]:
    """All that a service's database is made by: microkit's scripts, then its own."""
    return [MICROKIT] if scripts is None else [MICROKIT, of_service(scripts)]


def _read(file: Path) -> Script:
    tree = ast.parse(file.read_text("utf-8"), str(file))
    found: dict[str, object] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        if name in ("revision", "down_revision", "needs", *_SENTENCES):
            found[name] = _literal(value, name, file)
    revision, parents = found.get("revision"), found.get("down_revision")
    if not isinstance(revision, str):
        raise ConfigurationError(f'{file} is no migration: it has no line like revision = "0001"')
    many = parents if isinstance(parents, (tuple, list)) else () if parents is None else (parents,)
    title = (ast.get_docstring(tree) or file.stem).partition("\n")[0]
    said = {name: _sentence(found.get(name), name, file) for name in _SENTENCES}
    before = tuple(str(parent) for parent in many)
    needs = found.get("needs", before[0] if before else revision)
    return Script(revision, before, file, title, str(needs), **said)


def _literal(value: ast.expr, name: str, file: Path) -> object:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise ConfigurationError(
            f"{file}: {name} must be written out as text, since it is read without running"
        ) from None


def _sentence(value: object, name: str, file: Path) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value.split()) < 2:
        raise ConfigurationError(f"{file}: {name} must be a sentence that says why, not {value!r}")
    return value
