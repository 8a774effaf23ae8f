"""What `up --real` says once all is there: where things are, and nothing that is secret."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from microkit.cli.up_real import UpReal


@pytest.mark.parametrize(
    ("given", "own", "where"),
    [
        (
            "postgresql://ada:hunter22@db:5432",
            None,
            "Databases on postgresql://ada:***@db:5432, keys in",
        ),
        (
            None,
            "postgresql://microkit:hunter22@127.0.0.1:5433",
            "Databases on postgresql://microkit:***@127.0.0.1:5433",
        ),
    ],
)
def test_databases_are_where_they_are_whoever_started_them(given: str | None, own: str | None, where: str) -> None:
    real = UpReal.__new__(UpReal)
    out = io.StringIO()
    real._out = Console(file=out, soft_wrap=True)
    options: Any = SimpleNamespace(databases=given, folder=Path("here"), seed=False, json=False)
    fleet: Any = SimpleNamespace(name="shop", bus_url="redis://:hunter22@bus:6379/0", databases_url=own, children=[])
    real._options = options
    real._announce(fleet, "http://127.0.0.1:3900", 1.0, {})
    assert where in out.getvalue()
    assert "keys in here" in out.getvalue()
    assert "hunter22" not in out.getvalue()
