"""Tells the template where it lies, so that a new service depends on the microkit that the template is part of."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment
from jinja2.ext import Extension


class MicrokitCheckout(Extension):
    """``microkit_checkout()`` is the URL of the folder around the template: ``file:///home/ada/microkit``."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.globals["microkit_checkout"] = Path(__file__).resolve().parent.parent.as_uri
