"""Which frames a holder is found in."""

from __future__ import annotations

import contextlib

import pytest
import sqlalchemy
import uvicorn

from microkit.db import holders
from microkit.web import app


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (holders.__file__, holders._INSIDE),
        (sqlalchemy.__file__, holders._INSIDE),
        (contextlib.__file__, holders._INSIDE),
        (uvicorn.__file__, holders._INSIDE),
        ("<frozen runpy>", holders._INSIDE),
        (app.__file__, holders._OURS),
        ("/app/billing/handlers.py", holders._FOREIGN),
        ("/usr/local/lib/python3.11/site-packages/billing/handlers.py", holders._FOREIGN),
    ],
)
def test_a_service_is_told_from_what_carries_it_even_when_it_is_an_installed_package(file: str, kind: int) -> None:
    assert holders._kind(file) == kind
