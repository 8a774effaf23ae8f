"""What an older version does not survive, or waits for, whatever was there before, and squawk does not know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ObjectType, TransactionStmtKind
from pglast.visitors import Visitor

from microkit.db.linting.finding import Judgement
from microkit.db.linting.schema import Schema, name_of

_BREAKING: Final = {
    AlterTableType.AT_EnableRowSecurity: "a version that is bound by no policy finds no rows any more",
    AlterTableType.AT_ForceRowSecurity: "a version that is bound by no policy finds no rows any more",
    AlterTableType.AT_ChangeOwner: "a version that logs in as the owner of today may not use the table any more",
}
_LOCKING: Final = {
    AlterTableType.AT_SetLogged: "every row is written anew, and nobody can read or write the table meanwhile",
    AlterTableType.AT_SetUnLogged: "every row is written anew, nobody can use the table meanwhile, and a crash of the "
    "server empties it from then on",
    AlterTableType.AT_SetTableSpace: "the table is copied, and nobody can read or write it meanwhile",
    AlterTableType.AT_SetAccessMethod: "every row is written anew, and nobody can read or write the table meanwhile",
    AlterTableType.AT_AttachPartition: "all rows are read to see whether they belong there, and nobody can write them",
}
_DROPPED: Final[dict[Any, str]] = {
    ObjectType.OBJECT_TRIGGER: "a version that counts on what the trigger does is alone with it",
    ObjectType.OBJECT_RULE: "a version that counts on the rule is alone with it",
    ObjectType.OBJECT_POLICY: "a version that was let in by the policy finds no rows any more",
}
_BEGIN: Final = (TransactionStmtKind.TRANS_STMT_BEGIN, TransactionStmtKind.TRANS_STMT_START)
_SERIALS: Final = frozenset({"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"})
_CALLED: Final = frozenset({"setval", "set_config", "pg_advisory_xact_lock", "count", "now", "version"})
"""Functions that do to no table what one would have to know of."""

_LATER: Final = 'do it in a release after the last version that minds, and say contract = "…" in the script'
_QUIET: Final = 'do it while nobody uses the table, or say locks = "…" where that is a moment'
_BATCHES: Final = "do it in batches, from the program or in a script of its own with autocommit_block()"
_APART: Final = "put the rows into a script of their own after this one, in batches"
_READ: Final = 'look at what it does with somebody else, and say checked = "…" in the script'


@dataclass(slots=True)
class Progress:
    """Where a script is: the tables in use that its transaction has altered so far, and whether it is in one."""

    altered: set[str] = field(default_factory=set)
    in_transaction: bool = True

    def passed(self, schema: Schema, statement: Any) -> None:
        """Follows one statement."""
        if isinstance(statement, ast.TransactionStmt):
            self.altered.clear()
            self.in_transaction = statement.kind in _BEGIN
        elif isinstance(statement, ast.AlterTableStmt) and self.in_transaction:
            self.altered |= _in_use(schema, [statement.relation])


def judged_alone(schema: Schema, statement: Any, progress: Progress) -> Iterator[Judgement]:
    """What is wrong with a statement, at this point of its script."""
    if progress.in_transaction and _cannot_be_in_a_transaction(statement):
        yield _locks(
            "outside-of-transactions", "PostgreSQL does not do it inside a transaction, and the script fails",
            "with op.get_context().autocommit_block(): …, in a script of its own",
        )  # fmt: skip
    yield from _rows(schema, statement, progress)
    match statement:
        case ast.AlterTableStmt() if _in_use(schema, [statement.relation]):
            for command in statement.cmds or ():
                yield from _altered(command)
        case ast.DropStmt() if (said := _DROPPED.get(statement.removeType)) and _on_one_in_use(schema, statement):
            yield _breaks("dropped", said)
        case ast.DropOwnedStmt():
            yield _breaks("drop-owned", "all that the role has is gone, and a version that uses it fails")
        case ast.GrantStmt() | ast.GrantRoleStmt() if not statement.is_grant:
            yield _breaks("revoke", "a version that needs the right fails")
        case ast.RuleStmt() if _in_use(schema, [statement.relation]):
            yield _breaks("rule", "the statements of a version that knows nothing of the rule do something else")
        case _:
            yield from _held(schema, statement)
            yield from _opaque(schema, statement)


def _rows(schema: Schema, statement: Any, progress: Progress) -> Iterator[Judgement]:
    writes = _Writes.of(statement)
    if writes and progress.altered:
        yield _locks(
            "rows-in-the-transaction-of-a-change",
            f"{', '.join(sorted(progress.altered))} has been altered in this transaction, so that all who use it wait "
            "until these rows are done",
            _APART,
        )  # fmt: skip
    for each in writes:
        if isinstance(each, ast.DeleteStmt) and each.whereClause is None and _in_use(schema, [each.relation]):
            yield Judgement(
                "breaks", "all-rows-deleted", "the rows are gone under the version that is running",
                "delete what nobody needs any more, in batches, from the program",
            )  # fmt: skip
        if isinstance(each, ast.UpdateStmt) and each.whereClause is None and _in_use(schema, [each.relation]):
            said = "who writes to a row waits until all of them are done, and the table is twice as large then"
            yield _locks("all-rows-at-once", said, _BATCHES)


def _altered(command: Any) -> Iterator[Judgement]:
    if said := _BREAKING.get(command.subtype):
        yield _breaks("right-to-rows", said)
    if said := _LOCKING.get(command.subtype):
        yield _locks("written-anew", said, _QUIET)
    if command.subtype == AlterTableType.AT_AddColumn and command.def_.typeName.names[-1].sval in _SERIALS:
        yield _locks(
            "written-anew", "every row gets a number and is written anew, and nobody can use the table meanwhile",
            "add it as a bigint, nullable, with a sequence as its default set after; fill it in batches",
        )  # fmt: skip


def _held(schema: Schema, statement: Any) -> Iterator[Judgement]:
    match statement:
        case ast.LockStmt() if _in_use(schema, statement.relations or ()):
            yield _locks("lock-table", "the table is kept from others until the script's transaction ends", _QUIET)
        case ast.VacuumStmt() if _has(statement.options, "full"):
            yield _locks("written-anew", "the table is written anew, and nobody can read or write it meanwhile", _QUIET)
        case ast.ClusterStmt():
            yield _locks("written-anew", "the table is written anew, and nobody can read or write it meanwhile", _QUIET)
        case ast.RefreshMatViewStmt() if not statement.concurrent:
            yield _locks("refresh", "nobody can read the view while it is made", "REFRESH … CONCURRENTLY")


def _opaque(schema: Schema, statement: Any) -> Iterator[Judgement]:
    match statement:
        case ast.CreateTrigStmt() if _in_use(schema, [statement.relation]):
            yield _unread("what the trigger does to the writes of a version that knows nothing of it")
        case ast.DoStmt() | ast.CallStmt():
            yield _unread("what the block or the procedure does")
        case ast.SelectStmt() if strange := sorted(_Calls.of(statement) - _CALLED):
            yield _unread(f"what {', '.join(strange)}() does")


def _cannot_be_in_a_transaction(statement: Any) -> bool:
    match statement:
        case ast.IndexStmt() | ast.DropStmt():
            return bool(statement.concurrent)
        case ast.ReindexStmt():
            return _has(statement.params, "concurrently")
        case ast.VacuumStmt():
            return bool(statement.is_vacuumcmd)
    return False


def _has(options: Iterable[Any] | None, name: str) -> bool:
    return any(option.defname == name for option in options or ())


def _in_use(schema: Schema, relations: Iterable[Any]) -> set[str]:
    """Those of them that a version that is running may know."""
    return {name_of(each) for each in relations} - schema.new_tables


def _on_one_in_use(schema: Schema, statement: Any) -> bool:
    tables = {".".join(part.sval for part in each[:-1]) for each in statement.objects}
    return not tables <= schema.new_tables


def _breaks(rule: str, said: str) -> Judgement:
    return Judgement("breaks", rule, said, _LATER)


def _locks(rule: str, said: str, instead: str) -> Judgement:
    return Judgement("locks", rule, said, instead)


def _unread(what: str) -> Judgement:
    return Judgement("unread", "unread", f"{what} cannot be told from here", _READ)


class _Writes(Visitor):
    """The statements that write rows which are there, or many at once; not an INSERT of rows that stand in it."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    @classmethod
    def of(cls, statement: Any) -> list[Any]:
        if not isinstance(statement, (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt, ast.MergeStmt)):
            return []
        reader = cls()
        reader(statement)
        return reader.found

    def visit_UpdateStmt(self, _: object, node: Any) -> None:  # noqa: N802  pglast's names, here and below
        self.found.append(node)

    visit_DeleteStmt = visit_MergeStmt = visit_UpdateStmt  # noqa: N815

    def visit_InsertStmt(self, _: object, node: Any) -> None:  # noqa: N802
        if node.selectStmt is not None and not node.selectStmt.valuesLists:
            self.found.append(node)


class _Calls(Visitor):
    def __init__(self) -> None:
        self.found: set[str] = set()

    @classmethod
    def of(cls, statement: Any) -> set[str]:
        reader = cls()
        reader(statement)
        return reader.found

    def visit_FuncCall(self, _: object, node: Any) -> None:  # noqa: N802
        self.found.add(str(node.funcname[-1].sval))
