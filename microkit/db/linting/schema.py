"""What is known of the tables at a point in a chain of scripts, from the SQL that came before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pglast import ast
from pglast.enums.parsenodes import AlterTableType, ConstrType, ObjectType
from pglast.enums.primnodes import NullTestType
from pglast.visitors import Visitor

_DEFAULT = "public"
_UNIQUE = (ConstrType.CONSTR_PRIMARY, ConstrType.CONSTR_UNIQUE, ConstrType.CONSTR_EXCLUSION)


@dataclass(slots=True)
class Column:
    """``sizes`` is what stands in parentheses behind the type."""

    type: str
    sizes: tuple[int, ...]
    not_null: bool = False
    default: bool = False


@dataclass(frozen=True, slots=True)
class Unique:
    """That no two rows are alike: an index or a constraint."""

    table: str
    columns: tuple[str, ...]


@dataclass(slots=True)
class Schema:
    """``new_tables`` and ``new_columns`` are those of the release that is looked at: no older version knows them.

    ``never_null`` has the constraint that sees to it.
    """

    tables: dict[str, dict[str, Column]] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)
    unique: dict[str, Unique] = field(default_factory=dict)
    checks: dict[tuple[str, str], str] = field(default_factory=dict)
    never_null: dict[tuple[str, str], str] = field(default_factory=dict)
    new_tables: set[str] = field(default_factory=set)
    new_columns: set[tuple[str, str]] = field(default_factory=set)

    def begin_release(self) -> None:
        """From here on everything that is there is known to a version that may be running."""
        self.new_tables.clear()
        self.new_columns.clear()

    def left_empty(self, table: str, column: str) -> bool:
        """Whether an older version that inserts a row leaves that column NULL, since it does not know it."""
        known = self.tables.get(table, {}).get(column)
        return (table, column) in self.new_columns and known is not None and not known.default

    def apply(self, statement: Any) -> None:
        """Follows one statement."""
        match statement:
            case ast.CreateStmt():
                if not (statement.if_not_exists and name_of(statement.relation) in self.tables):
                    self._create(name_of(statement.relation), statement.tableElts or ())
            case ast.AlterTableStmt() if statement.objtype == ObjectType.OBJECT_TABLE:
                for command in statement.cmds or ():
                    self._alter(name_of(statement.relation), command)
            case ast.IndexStmt():
                self._index(statement)
            case ast.DropStmt():
                self._drop(statement)
            case ast.RenameStmt():
                self._rename(statement)

    def _create(self, table: str, elements: Iterable[Any]) -> None:
        self.tables[table] = {}
        self.new_tables.add(table)
        for element in elements:
            if isinstance(element, ast.ColumnDef):
                self._add(table, element)
            elif isinstance(element, ast.Constraint):
                self._constrain(table, element, ())

    def _add(self, table: str, column: Any) -> None:
        self.tables[table][column.colname] = column_of(column)
        for constraint in column.constraints or ():
            self._constrain(table, constraint, (column.colname,))

    def _constrain(self, table: str, constraint: Any, column: tuple[str, ...]) -> None:
        if constraint.contype in _UNIQUE and not constraint.indexname:
            keys = column or tuple(key.sval for key in constraint.keys or ())
            self.unique[constraint.conname or f"{table}_{'_'.join(keys)}_key"] = Unique(table, keys)
        if constraint.contype == ConstrType.CONSTR_CHECK and (column_name := tested_for_null(constraint.raw_expr)):
            name = constraint.conname or f"{table}_{column_name}_check"
            if constraint.skip_validation:
                self.checks[table, name] = column_name
            else:
                self.never_null[table, column_name] = name

    def _alter(self, table: str, command: Any) -> None:
        columns = self.tables.setdefault(table, {})
        known = columns.get(command.name or "")
        match command.subtype:
            case AlterTableType.AT_AddColumn:
                self._add(table, command.def_)
                self.new_columns.add((table, command.def_.colname))
            case AlterTableType.AT_DropColumn:
                columns.pop(command.name, None)
            case AlterTableType.AT_AddConstraint:
                self._constrain(table, command.def_, ())
            case AlterTableType.AT_ValidateConstraint if column := self.checks.get((table, command.name)):
                self.never_null[table, column] = command.name
            case AlterTableType.AT_DropConstraint:
                self.unique.pop(command.name, None)
                self.checks.pop((table, command.name), None)
                for pair in [
                    pair for pair, name in self.never_null.items() if (pair[0], name) == (table, command.name)
                ]:
                    del self.never_null[pair]
            case AlterTableType.AT_AlterColumnType if known:
                known.type, known.sizes = type_of(command.def_.typeName)
            case AlterTableType.AT_ColumnDefault if known:
                known.default = command.def_ is not None
            case AlterTableType.AT_SetNotNull | AlterTableType.AT_DropNotNull if known:
                known.not_null = command.subtype == AlterTableType.AT_SetNotNull

    def _index(self, statement: Any) -> None:
        table = name_of(statement.relation)
        self.indexes[statement.idxname or ""] = table
        if statement.unique:
            self.unique[statement.idxname or ""] = Unique(table, index_columns(statement))

    def _drop(self, statement: Any) -> None:
        for name in dropped(statement):
            if statement.removeType == ObjectType.OBJECT_TABLE:
                self.tables.pop(name, None)
            elif statement.removeType == ObjectType.OBJECT_INDEX:
                self.indexes.pop(name, None)
                self.unique.pop(name, None)

    def _rename(self, statement: Any) -> None:
        if statement.relation is None:
            return
        table = name_of(statement.relation)
        if statement.renameType == ObjectType.OBJECT_TABLE and table in self.tables:
            self.tables[statement.newname] = self.tables.pop(table)
        elif statement.renameType == ObjectType.OBJECT_COLUMN and statement.subname in self.tables.get(table, {}):
            self.tables[table][statement.newname] = self.tables[table].pop(statement.subname)


def name_of(relation: Any) -> str:
    """``schema.table``, or ``table`` in the schema where tables are if nothing else is said."""
    elsewhere = relation.schemaname not in (None, "", _DEFAULT)
    return f"{relation.schemaname}.{relation.relname}" if elsewhere else str(relation.relname)


def dropped(statement: Any) -> list[str]:
    """What a DROP names."""
    return [
        ".".join(part.sval for part in each).removeprefix(f"{_DEFAULT}.") if isinstance(each, tuple) else str(each)
        for each in statement.objects
    ]


def type_of(type_name: Any) -> tuple[str, tuple[int, ...]]:
    """A type's name in PostgreSQL's own words (``int8``, ``varchar``), and its sizes."""
    sizes = tuple(
        size.val.ival for size in type_name.typmods or () if isinstance(getattr(size, "val", None), ast.Integer)
    )
    name = str(type_name.names[-1].sval)
    return f"{name}[]" if type_name.arrayBounds else name, sizes


def column_of(definition: Any) -> Column:
    """A column as CREATE TABLE or ADD COLUMN has it."""
    kinds = {constraint.contype for constraint in definition.constraints or ()}
    name, sizes = type_of(definition.typeName)
    made = {ConstrType.CONSTR_DEFAULT, ConstrType.CONSTR_IDENTITY, ConstrType.CONSTR_GENERATED}
    serial = name in ("serial", "bigserial", "smallserial")
    not_null = bool(kinds & {ConstrType.CONSTR_NOTNULL, ConstrType.CONSTR_PRIMARY})
    return Column(name, sizes, not_null=not_null, default=serial or bool(kinds & made))


def index_columns(statement: Any) -> tuple[str, ...]:
    """The columns that an index is by, those in expressions among them."""
    return tuple(
        column for each in statement.indexParams for column in ([each.name] if each.name else columns_in(each.expr))
    )


def columns_in(expression: Any) -> list[str]:
    """The columns that an expression reads."""
    reader = _Columns()
    if expression is not None:
        reader(expression)
    return reader.found


def tested_for_null(expression: Any) -> str | None:
    """The column of ``column IS NOT NULL``."""
    if isinstance(expression, ast.NullTest) and expression.nulltesttype == NullTestType.IS_NOT_NULL:
        found = columns_in(expression)
        return found[0] if found else None
    return None


class _Columns(Visitor):
    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_ColumnRef(self, _: object, node: Any) -> None:  # noqa: N802  pglast's name
        if isinstance(node.fields[-1], ast.String):
            self.found.append(str(node.fields[-1].sval))
