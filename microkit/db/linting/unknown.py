"""What PostgreSQL makes of NULL in an expression."""

from __future__ import annotations

from typing import Any, Final

from pglast import ast
from pglast.enums.parsenodes import A_Expr_Kind

_PLAIN: Final = (
    A_Expr_Kind.AEXPR_OP,
    A_Expr_Kind.AEXPR_LIKE,
    A_Expr_Kind.AEXPR_ILIKE,
    A_Expr_Kind.AEXPR_SIMILAR,
)
_LEFT: Final = (
    A_Expr_Kind.AEXPR_IN,
    A_Expr_Kind.AEXPR_BETWEEN,
    A_Expr_Kind.AEXPR_NOT_BETWEEN,
    A_Expr_Kind.AEXPR_BETWEEN_SYM,
    A_Expr_Kind.AEXPR_NOT_BETWEEN_SYM,
)
_STRICT: Final = frozenset(
    {
        "abs", "array_length", "bit_length", "btrim", "cardinality", "char_length", "character_length", "json_typeof",
        "jsonb_typeof", "length", "lower", "ltrim", "octet_length", "round", "rtrim", "upper",
    }
)  # fmt: skip
"""Functions that answer NULL to NULL (``proisstrict``), of those that one writes into a CHECK."""


def comes_to_null(expression: Any) -> bool:
    """Whether it surely is NULL where all columns that it reads are. Where that cannot be told, it is not sure."""
    found = isinstance(expression, ast.ColumnRef)
    match expression:
        case ast.TypeCast():
            found = comes_to_null(expression.arg)
        case ast.BoolExpr():
            found = all(comes_to_null(each) for each in expression.args or ())
        case ast.A_Expr() if expression.kind in _PLAIN:
            found = comes_to_null(expression.lexpr) or comes_to_null(expression.rexpr)
        case ast.A_Expr() if expression.kind in _LEFT:
            found = comes_to_null(expression.lexpr)
        case ast.A_Expr() if expression.kind in (A_Expr_Kind.AEXPR_OP_ANY, A_Expr_Kind.AEXPR_OP_ALL):
            some = isinstance(expression.rexpr, ast.A_ArrayExpr) and bool(expression.rexpr.elements)
            found = some and comes_to_null(expression.lexpr)
        case ast.FuncCall() if expression.funcname and expression.funcname[-1].sval in _STRICT:
            found = any(comes_to_null(each) for each in expression.args or ())
    return found
