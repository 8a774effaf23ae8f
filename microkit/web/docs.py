"""The page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(document: Mapping[str, Any]) -> str:
    return "<!doctype html>"
