"""Questions between the processes of one instance: HTTP on sockets in a folder that only their user reads."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

PATIENCE: Final = 5.0
"""Seconds for an answer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer."""

    status: int
    body: bytes

    @property
    def document(self) -> Any:
        """What its JSON says; ``None`` where it is none."""
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(self.body)
        return None


def session_at(path: Path, patience: float) -> aiohttp.ClientSession:
    """A session whose requests all go to the socket at ``path``."""
    return aiohttp.ClientSession(
        "http://localhost",
        connector=aiohttp.UnixConnector(path=str(path)),
        timeout=aiohttp.ClientTimeout(total=patience),
        trust_env=False,
    )
