"""``microkit pool``: who has the database connections of running services."""

from __future__ import annotations

import asyncio
from pathlib import Path

from microkit.cli.admin_asking import instances, told_by
from microkit.cli.printing import print_json, print_table, say, seconds


def pool(urls: list[str], service: str | None, folder: Path, *, json: bool) -> None:
    """Prints the pools of the instances at ``urls``, else of those that run in ``folder``.

    Raises:
        ConfigurationError: none runs there, or one does not answer.
    """
    found = asyncio.run(told_by(instances(urls, service, folder), "pool"))
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
