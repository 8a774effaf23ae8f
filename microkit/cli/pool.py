"""``microkit pool``: who has the database connections of running services."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from microkit.cli.folder import read_note
from microkit.cli.printing import print_json, print_table, say, seconds
from microkit.errors import ConfigurationError

_PATIENCE: Final = aiohttp.ClientTimeout(total=5)


def pool(urls: list[str], service: str | None, folder: Path, *, json: bool) -> None:
    """Prints the pools of the instances at ``urls``, else of those that run in ``folder``.

    Raises:
        ConfigurationError: none runs there, or one does not answer.
    """
    found = asyncio.run(_ask({url: url for url in urls} if urls else _noted(service, folder)))
    if json:
        print_json({"instances": found})
        return
    pools = [(each["instance"], one) for each in found for one in each["pools"]]
    print_table(
        "Pools",
        ("instance", "pool", "used", "idle", "of", "waiting", "used for, on average"),
        [
            (
                name,
                one["name"],
                one["used"],
                one["idle"],
                one["size"],
                one["pending"],
                f"{one['typical_use'] * 1e3:.1f} ms",
            )
            for name, one in pools
        ],
    )
    holders = [(name, holder) for name, one in pools for holder in one["holders"]]
    if not holders:
        say("Nobody has a connection at the moment.")
        return
    print_table(
        "Who has a connection",
        ("instance", "pool", "for", "work", "function", "taken at", "is now at"),
        [
            (name, one["pool"], seconds(one["seconds"]), one["work"], one["function"], one["taken_at"],
             one["now"][-1] if one["now"] else "")
            for name, one in holders
        ],
    )  # fmt: skip


def _noted(service: str | None, folder: Path) -> Mapping[str, str]:
    note = read_note(folder)
    # The second of a service is called billing-2.
    of_service = re.compile(rf"{re.escape(service)}(-\d+)?") if service else re.compile(".*")
    found = {name: url for name, url in note.admin.items() if of_service.fullmatch(name)}
    if not found:
        what = f"{service!r} has no admin endpoints there" if service else "No service has admin endpoints there"
        raise ConfigurationError(
            f"{what}: set <SERVICE>_ADMIN_PORT, or name an instance's with --url http://127.0.0.1:9000"
        )
    return found


async def _ask(instances: Mapping[str, str]) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False) as session:
        return [await _one(session, name, url) for name, url in instances.items()]


async def _one(session: aiohttp.ClientSession, name: str, url: str) -> dict[str, Any]:
    try:
        async with session.get(f"{url.rstrip('/')}/pool") as response:
            document = orjson.loads(await response.read())
            if response.status != 200:
                raise ConfigurationError(f"{name} cannot tell: {document.get('detail', response.status)}")
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise ConfigurationError(f"No admin endpoints answer at {url}: {str(error) or type(error).__name__}") from None
    return {"instance": name, **document}
