"""What the import linter cannot see."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import microkit

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted(
    path for folder in ("microkit", "reference") for path in (ROOT / folder).rglob("*.py") if "tests" not in path.parts
)
EMPTY_NAMES = {"utils", "common", "helpers", "misc", "base"}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path for path in MODULES if path.stem in EMPTY_NAMES] == []


def test_nothing_is_imported_under_type_checking_to_break_a_cycle() -> None:
    """The one place where it stands is the package's own front door, which imports lazily so that it stays light."""
    hiding = [path for path in MODULES if "TYPE_CHECKING" in path.read_text(encoding="utf-8")]

    assert hiding == [ROOT / "microkit" / "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_takes_no_keywords_only_to_pass_them_through(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    passing = [function.name for function in functions if function.args.kwarg and _hands_on(function)]

    assert passing == []


def _hands_on(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a call in it gets all keywords that it was called with. A hook of a library's that takes some and ignores
    them is no harm, nor is a private function with the signature that a library asks for."""
    name = function.args.kwarg.arg if function.args.kwarg else None
    unpacked = [
        keyword.value.id
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg is None and isinstance(keyword.value, ast.Name)
    ]
    return name in unpacked and not function.name.startswith("_")


def test_the_public_names_are_these() -> None:
    for name in microkit.__all__:
        assert getattr(microkit, name) is not None
    assert sorted(microkit.__all__) == [
        "ANYONE", "ASK_AGAIN", "BadRequest", "ClientAddress", "ConfigurationError", "Conflict", "Contract",
        "Database", "DeadLetter", "DefinitionError", "Duration", "Event", "Forbidden", "Gateway", "Header",
        "Instance", "Limit", "MicrokitError", "NO_EFFECT", "NotFound", "Page", "PageRequest", "Principal", "Problem",
        "Process", "REFUSE", "Rate", "RemoteProblem", "Retry", "Route", "SERVICE", "SIGNED_IN", "Saga", "Service",
        "ServiceSettings", "Size", "StepContext", "StepNotYet", "StepRefused", "System", "Telemetry", "Transaction",
        "Unauthorized", "Unavailable", "ValidationFailed", "await_event", "compensatable", "delete", "get",
        "parallel", "patch", "pivot", "post", "put", "request", "retriable", "upcast",
    ]  # fmt: skip


def test_importing_microkit_loads_no_driver_no_broker_and_no_command_line() -> None:
    heavy = ["sqlalchemy", "aiohttp", "asyncpg", "aiosqlite", "alembic", "typer", "rich", "jwt", "uvicorn"]
    script = f"import sys, microkit; print([name for name in {heavy!r} if name in sys.modules])"

    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert printed.strip() == "[]"


@pytest.mark.xdist_group("one that is kept together")
def test_tests_of_one_group_run_in_one_worker(request: pytest.FixtureRequest) -> None:
    grouped = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@one that is kept together") is grouped
