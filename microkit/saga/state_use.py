"""What a step's function reads of the state and what it leaves in it, as its source says.

Only what is certain counts. A function whose source is not at hand, that hands the state on, or that returns something
else than a dictionary written down there, may leave anything. A field that it asks about is not needed, nor one that it
takes into a variable, which it may ask about.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from microkit.saga.step import Action, hints_of


@dataclass(frozen=True, slots=True)
class _Source:
    tree: ast.AST
    state: str
    """The name of the parameter that takes the state; empty where there is none."""


def needs(function: Action, state: type[BaseModel]) -> set[str]:
    """The fields that ``function`` reads without asking first whether they are there."""
    source = _source(function, state)
    if source is None:
        return set()
    asked = {field for part in _asking(source.tree) for field in _fields(part, source.state, ast.Load)}
    return set(_fields(source.tree, source.state, ast.Load)) - asked


def leaves(function: Action, state: type[BaseModel]) -> set[str] | None:
    """The fields that ``function`` may leave changed; ``None``: any."""
    source = _source(function, state)
    if source is None or _hands_on(source):
        return None
    left = set(_fields(source.tree, source.state, ast.Store))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Return) and not _is_plain(node.value, source.state):
            keys = _keys(node.value)
            if keys is None:
                return None
            left |= keys
    return left


def reads(function: Callable[..., Any]) -> set[str]:
    """The attributes that a plain function, or a lambda, reads of its first parameter, as its bytecode says."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not code.co_varnames:
        return set()  # no Python, or a partial
    found, before = set(), None
    for each in dis.get_instructions(code):
        if each.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")) and before == code.co_varnames[0]:
            found.add(str(each.argval))
        loaded = each.argval if each.opname.startswith("LOAD_FAST") else None
        before = loaded[-1] if isinstance(loaded, tuple) else loaded  # two may be loaded at once
    return found


def _source(function: Action, state: type[BaseModel]) -> _Source | None:
    plain = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(plain))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None  # written at a prompt, or no function
    if not isinstance(tree, ast.AsyncFunctionDef):
        return None
    taking = [name for name, kind in hints_of(tree.name, plain).items() if name == "state" or kind is state]
    taking = [name for name in taking if name != "return"]
    return _Source(tree, taking[0] if taking else "") if len(taking) < 2 else None


def _fields(tree: ast.AST, state: str, use: type[ast.expr_context]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, use) and _is_name(node.value, state):
            yield node.attr


def _asking(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        match node:
            case ast.If() | ast.IfExp() | ast.While() | ast.Assert():
                yield node.test
            case ast.Match():
                yield node.subject
            case ast.BoolOp() | ast.Compare():
                yield node
            case ast.comprehension():
                yield from node.ifs
            case ast.Assign(value=ast.expr() as value) | ast.NamedExpr(value=ast.expr() as value):
                yield from _taken(value)
            case ast.AnnAssign(value=ast.expr() as value):
                yield from _taken(value)


def _taken(value: ast.expr) -> list[ast.expr]:
    """Fields that become variables: themselves, or in a tuple of them."""
    return [
        each for each in (value.elts if isinstance(value, ast.Tuple) else [value]) if isinstance(each, ast.Attribute)
    ]


def _hands_on(source: _Source) -> bool:
    """Whether the state is used as a whole, or one of its methods is called: others may change it."""
    owned = {
        id(node.value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute | ast.Return) and _is_name(node.value, source.state)
    }
    called = {id(node.func) for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
    return any(
        (_is_name(node, source.state) and id(node) not in owned)
        or (isinstance(node, ast.Attribute) and id(node) in called and _is_name(node.value, source.state))
        for node in ast.walk(source.tree)
    )


def _is_plain(value: ast.expr | None, state: str) -> bool:
    return value is None or _is_name(value, state) or (isinstance(value, ast.Constant) and value.value is None)


def _is_name(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _keys(value: ast.expr | None) -> set[str] | None:
    """The keys of a dictionary that is written down; ``None`` where it is something else."""
    if isinstance(value, ast.Call) and _is_name(value.func, "dict") and not value.args:
        names = [keyword.arg for keyword in value.keywords]
        return None if None in names else {name for name in names if name is not None}
    if not isinstance(value, ast.Dict):
        return None
    keys = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return set(keys) if len(keys) == len(value.keys) else None


def parameters_of(function: Callable[..., Any], context: type) -> list[str]:
    """What a plain function of the state takes, in its order: ``state``, and ``step`` where it asks for the context."""
    taken = []
    for number, each in enumerate(inspect.signature(function).parameters.values()):
        if each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            break
        is_context = each.annotation in (context, context.__name__) or (number > 0 and each.name == "step")
        taken.append("step" if is_context else "state")
    return taken
