"""The OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microkit.web.route import Route, Surface


def document(surface: Surface, routes: Sequence[Route]) -> dict[str, Any]:
    return {"openapi": "3.1.0"}
