"""A process that migrates: ``migrating.py URL FOLDER``. Says that it begins, and then what it did."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from microkit.db import Database
from microkit.db.migration import migrate
from microkit.telemetry import Telemetry


async def main(url: str, folder: Path) -> None:
    database = Database(url, telemetry=Telemetry("migrating", exporter="none"))
    await database.start()
    print("begins", flush=True)  # noqa: T201  the test reads it
    print(json.dumps(await migrate(database, folder)), flush=True)  # noqa: T201
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
