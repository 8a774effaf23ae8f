"""Which migrations an older running version would not survive, and which hold others up on PostgreSQL.

The scripts are rendered as PostgreSQL's SQL and read with PostgreSQL's own parser; no database is needed. Alembic and
two libraries of the extra ``lint`` are loaded here, so import it where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from microkit.db.linting.finding import Finding, Judgement, Kind
from microkit.db.rendering import Rendered, rendered
from microkit.db.scripts import Script, Scripts
from microkit.errors import ConfigurationError, MissingExtra

try:
    from pglast import ast, parse_sql
    from pglast.parser import ParseError

    from microkit.db.linting.rules import judged
    from microkit.db.linting.schema import Schema, dropped, name_of
    from microkit.db.linting.statements import Progress, judged_alone
except ImportError as error:
    if error.name == "pglast":
        raise MissingExtra("microkit migrate lint", "lint") from error
    raise
from microkit.db.linting.squawk import squawked

__all__ = ["Finding", "Judgement", "Kind", "lint"]


def lint(scripts: Scripts, *, since: str | None = None) -> list[Finding]:
    """Everything there is to say of the scripts, oldest first; what is ``accepted`` is no reason to stop.

    Each script is taken for a release of its own: what the scripts before it made is in use. With ``since`` only the
    scripts after that revision are looked at (``base``: all of them), and they are one release: no version that is
    running knows the tables that they make.

    Raises:
        ConfigurationError: ``since`` is unknown, the scripts cannot be read, or they have several ends.
        MissingExtra: the extra ``lint`` is not installed.
    """
    if since is not None and since != "base" and since not in scripts.known:
        raise ConfigurationError(f"the migrations of {scripts.owner} have no revision {since!r}; they have: "
                                 f"{', '.join(scripts.known)}")  # fmt: skip
    scripts.check_end()
    before = scripts.reached([since]) if since not in (None, "base") else set[str]()
    chain = rendered(scripts, "postgresql")
    remarks = squawked([each.statements for each in chain])
    schema = Schema()
    found: list[Finding] = []
    for each, said in zip(chain, remarks, strict=True):
        if since is None:
            schema.begin_release()
        reader = _Reader(schema, each, said)
        findings = [_finding(scripts, each.script, *pair) for pair in reader.read()]
        if each.script.revision in before:
            schema.begin_release()
        else:
            found += dict.fromkeys(findings)
    return found


class _Reader:
    """Reads one script, statement by statement, and keeps the schema up to it."""

    def __init__(self, schema: Schema, each: Rendered, remarks: list[tuple[int, Judgement]]) -> None:
        self._schema = schema
        self._each = each
        self._remarks = remarks
        self._progress = Progress()

    def read(self) -> Iterator[tuple[str, Judgement]]:
        for number, statement in enumerate(self._each.statements):
            try:
                parsed = [raw.stmt for raw in parse_sql(statement)]
            except ParseError as error:
                yield statement, _unread(f"PostgreSQL could not read it: {error.args[0]}")
                continue
            known = [judgement for at, judgement in self._remarks if at == number]
            if not parsed or not all(self._new(each) for each in parsed):
                yield from ((statement, judgement) for judgement in known)
            for each in parsed:
                yield from ((statement, judgement) for judgement in judged(self._schema, each))
                yield from ((statement, judgement) for judgement in judged_alone(self._schema, each, self._progress))
                self._progress.passed(self._schema, each)
                self._schema.apply(each)
        if self._each.trouble is not None:
            yield f"(after {len(self._each.statements)} statements)", _unread(self._each.trouble)

    def _new(self, statement: Any) -> bool:
        """Whether all that it touches is of this release, so that no older version knows it."""
        if isinstance(statement, ast.DropStmt):
            names = [self._schema.indexes.get(name, name) for name in dropped(statement)]
        else:
            relation = getattr(statement, "relation", None)
            names = [] if relation is None else [name_of(relation)]
        return bool(names) and all(name in self._schema.new_tables for name in names)


def _unread(why: str) -> Judgement:
    return Judgement(
        "unread", "unread", f"what it does cannot be told without a database: {why}",
        "move what reads rows into a script of its own, look at it with somebody else, and say "
        'checked = "…" in it',
    )  # fmt: skip


def _finding(scripts: Scripts, script: Script, statement: str, judgement: Judgement) -> Finding:
    accepted = {"breaks": script.contract, "locks": script.locks, "unread": script.checked}[judgement.kind]
    line = " ".join(statement.split())
    return Finding(scripts.owner, script.revision, script.file.name, line, judgement, accepted)
