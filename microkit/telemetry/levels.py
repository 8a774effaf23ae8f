"""The log level of one instance, read and changed while it runs."""

from __future__ import annotations

import logging
from typing import Final

from microkit.telemetry.telemetry import Telemetry

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def level_of(telemetry: Telemetry) -> str:
    """The least severe level that is written."""
    return logging.getLevelName(telemetry.logger.level)


def set_level(telemetry: Telemetry, level: str) -> None:
    """Changes the level of this instance's logger, and of no other's; one of :data:`LEVELS`."""
    telemetry.logger.setLevel(level)
