"""What an older running version does not survive, where that depends on what was there before.

squawk sees one script at a time and cannot know it; what it knows is in :mod:`microkit.db.linting.squawk`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ConstrType, ObjectType

from microkit.db.linting.finding import Judgement
from microkit.db.linting.schema import (
    Column,
    Schema,
    column_of,
    columns_in,
    dropped,
    index_columns,
    name_of,
    type_of,
)
from microkit.db.linting.unknown import comes_to_null

_INTEGERS: Final = ("int2", "int4", "int8")
_TEXTS: Final = ("varchar", "text")


def judged(schema: Schema, statement: Any) -> Iterator[Judgement]:
    """What is wrong with a statement."""
    match statement:
        case ast.IndexStmt() if statement.unique:
            yield from _unique_index(schema, statement)
        case ast.AlterTableStmt() if name_of(statement.relation) not in schema.new_tables:
            for command in statement.cmds or ():
                yield from _altered(schema, name_of(statement.relation), command)
        case ast.DropStmt() if statement.removeType == ObjectType.OBJECT_INDEX:
            for name in dropped(statement):
                yield from _unique_dropped(schema, name)
        case ast.TruncateStmt():
            yield from _emptied(schema, [name_of(relation) for relation in statement.relations or ()])


def _emptied(schema: Schema, tables: Sequence[str]) -> Iterator[Judgement]:
    for table in tables:
        if table not in schema.new_tables:
            yield Judgement(
                "breaks", "truncate", f"the rows of {table} are gone under the version that is running",
                "delete what nobody needs any more, in batches, from the program",
            )  # fmt: skip


def _altered(schema: Schema, table: str, command: Any) -> Iterator[Judgement]:
    known = schema.tables.get(table, {}).get(command.name or "")
    match command.subtype:
        case AlterTableType.AT_AddConstraint:
            yield from _constraint(schema, table, command.def_, ())
        case AlterTableType.AT_AddColumn:
            for constraint in command.def_.constraints or ():
                if not _fulfilled(command.def_, constraint):
                    yield from _constraint(schema, table, constraint, (command.def_.colname,))
        case AlterTableType.AT_DropConstraint:
            yield from _unique_dropped(schema, command.name)
        case AlterTableType.AT_AlterColumnType:
            plain = command.def_.raw_default is None and command.def_.collClause is None
            yield from _type(table, command.name, known if plain else None, *type_of(command.def_.typeName))
        case AlterTableType.AT_SetNotNull if (table, command.name) not in schema.never_null:
            yield from _not_null(table, command.name, known)


def _not_null(table: str, column: str, known: Column | None) -> Iterator[Judgement]:
    if known is None or not known.default:
        yield Judgement(
            "breaks", "set-not-null", f"a version that leaves {table}.{column} out can insert no row any more",
            "first release a version that always writes it; make it NOT NULL in the release after, and say "
            'contract = "…"',
        )  # fmt: skip
    yield Judgement(
        "locks", "set-not-null-reads-the-table",
        f"nobody can read or write {table} while it is searched for rows without {column}",
        f"ADD CONSTRAINT … CHECK ({column} IS NOT NULL) NOT VALID, VALIDATE it in a script after that, and only then "
        "SET NOT NULL, which then need not look",
    )  # fmt: skip


def _type(table: str, column: str, known: Column | None, name: str, sizes: tuple[int, ...]) -> Iterator[Judgement]:
    instead = (
        f"add a column beside {column}, write both, fill it in batches, read the new one, and drop the old one in a "
        "later release"
    )
    if known is not None and _same_or_wider_text(known, name, sizes):
        return
    if known is not None and known.type in _INTEGERS and name in _INTEGERS[_INTEGERS.index(known.type) + 1 :]:
        said = f"{table} is written anew, every row of it, and nobody can read or write it meanwhile"
        yield Judgement("locks", "type-written-anew", said, instead)
        return
    before = f" from {_told(known.type, known.sizes)}" if known is not None else ""
    yield Judgement(
        "breaks", "type-changed",
        f"{table}.{column} becomes {_told(name, sizes)}{before}: what an older version writes may not fit, and what it "
        "reads is not what it takes it for",
        instead,
    )  # fmt: skip


def _same_or_wider_text(known: Column, name: str, sizes: tuple[int, ...]) -> bool:
    if (known.type, known.sizes) == (name, sizes):
        return True
    if known.type == name == "numeric" and len(known.sizes) == len(sizes) == 2:
        return known.sizes[1] == sizes[1] and known.sizes[0] <= sizes[0]
    if known.type not in _TEXTS or name not in _TEXTS:
        return False
    return not sizes or (bool(known.sizes) and known.sizes[0] <= sizes[0])


def _told(name: str, sizes: tuple[int, ...]) -> str:
    return f"{name}({', '.join(map(str, sizes))})" if sizes else name


def _unique_index(schema: Schema, statement: Any) -> Iterator[Judgement]:
    table = name_of(statement.relation)
    if table in schema.new_tables:
        return
    yield from _one_of_a_kind(schema, table, index_columns(statement), nulls_alike=statement.nulls_not_distinct)


def _one_of_a_kind(
    schema: Schema, table: str, columns: tuple[str, ...], *, nulls_alike: bool = False
) -> Iterator[Judgement]:
    if not nulls_alike and any(schema.left_empty(table, column) for column in columns):
        return
    yield Judgement(
        "breaks", "new-unique", f"a version that writes the same {', '.join(columns)} into {table} twice fails then",
        'first release a version that never does; add it in the release after, and say contract = "…"',
    )  # fmt: skip


def _constraint(schema: Schema, table: str, constraint: Any, column: tuple[str, ...]) -> Iterator[Judgement]:
    match constraint.contype:
        case ConstrType.CONSTR_UNIQUE | ConstrType.CONSTR_EXCLUSION | ConstrType.CONSTR_PRIMARY:
            keys = column or tuple(key.sval for key in constraint.keys or ())
            if not constraint.indexname and not (column and constraint.contype == ConstrType.CONSTR_UNIQUE):
                nulls_alike = bool(constraint.nulls_not_distinct) or constraint.contype == ConstrType.CONSTR_PRIMARY
                yield from _one_of_a_kind(schema, table, keys, nulls_alike=nulls_alike)
        case ConstrType.CONSTR_CHECK:
            empty = all(each in column or schema.left_empty(table, each) for each in columns_in(constraint.raw_expr))
            if not (empty and comes_to_null(constraint.raw_expr)):  # NULL is as good as true
                yield _refuses(table, "new-check", "rows that do not fulfil it")
        case ConstrType.CONSTR_FOREIGN if not column:
            keys = tuple(key.sval for key in constraint.fk_attrs or ())
            if not any(schema.left_empty(table, each) for each in keys):
                parent = name_of(constraint.pktable)
                yield _refuses(table, "new-foreign-key", f"rows without their {parent}, or deletes those of {parent}")


def _fulfilled(column: Any, constraint: Any) -> bool:
    """Whether it is a CHECK on the column's default, which the rows that are there are given, too."""
    check = constraint.contype == ConstrType.CONSTR_CHECK
    return check and column_of(column).default and set(columns_in(constraint.raw_expr)) <= {column.colname}


def _refuses(table: str, rule: str, what: str) -> Judgement:
    return Judgement(
        "breaks", rule, f"a version that writes {what} fails on {table} from now on, NOT VALID or not",
        'first release a version that never does; add it in the release after, NOT VALID, and say contract = "…"',
    )  # fmt: skip


def _unique_dropped(schema: Schema, name: str) -> Iterator[Judgement]:
    known = schema.unique.get(name)
    if known is not None and known.table not in schema.new_tables:
        yield Judgement(
            "breaks", "unique-dropped",
            f"INSERT … ON CONFLICT ({', '.join(known.columns)}) of an older version fails without {name}, and what it "
            "took to be unique no longer is",
            'drop it in the release after the last that relies on it, and say contract = "…"',
        )  # fmt: skip
