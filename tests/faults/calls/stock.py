"""An instance of the service ``stock`` as a process of its own: ``python stock.py``, told by ``STOCK_…`` what to be.

``POST /mode`` with a mode makes it healthy, slow (each answer takes two seconds) or failing (500).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from microkit import ANYONE, Contract, Service, get

SLOW: Final = 2.0


class Stock(Contract, service="stock", prefix="/stock", allow=ANYONE):
    @get("/{item}")
    async def read(self, item: int) -> int:
        """How many there are."""
        ...


service = Service("stock")


@dataclass
class Shelf:
    """What this instance is like, and how often it was asked since it was told."""

    mode: str = "healthy"
    asked: int = 0


shelf = Shelf()


@service.handles(Stock.read)
async def read(item: int) -> int:
    shelf.asked += 1
    if shelf.mode == "slow":
        await asyncio.sleep(SLOW)
    if shelf.mode == "failing":
        raise RuntimeError("out of order")
    return item * 2


@service.post("/mode", allow=ANYONE)
async def switch(request: Request) -> Response:
    """Also tells how often it was asked since the last switch."""
    before, shelf.mode, shelf.asked = shelf.asked, str(await request.json()), 0
    return JSONResponse(before)


async def main() -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with service.instance() as instance:
        sys.stdout.write(f"{instance.url}\n")
        sys.stdout.flush()
        await told.wait()


if __name__ == "__main__":
    asyncio.run(main())
