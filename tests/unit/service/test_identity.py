"""In whose name one service calls another."""

from __future__ import annotations

from pathlib import Path

import pytest

from microkit import SERVICE, SIGNED_IN, Contract, Principal, Service, System, get
from microkit.testing.system import run_system

pytestmark = pytest.mark.anyio


class Back(Contract, service="back", prefix="/back"):
    @get("/caller", allow=SIGNED_IN)
    async def who_calls(self) -> str: ...


class Middle(Contract, service="middle", prefix="/middle"):
    @get("/caller-of-back", allow=SERVICE)
    async def caller_of_back(self) -> str: ...


def chain() -> System:
    back, middle, front = Service("back"), Service("middle"), Service("front")
    next_one = middle.client(Back)
    front.client(Middle)

    @back.handles(Back.who_calls)
    async def who_calls(caller: Principal) -> str:
        return caller.subject

    @middle.handles(Middle.caller_of_back)
    async def caller_of_back() -> str:
        return await next_one.who_calls()

    return System("chain", [back, middle, front])


async def test_a_service_never_passes_another_service_s_token_on(tmp_path: Path) -> None:
    async with run_system(chain(), tmp_path) as system:
        assert await system["front"].client(Back).who_calls() == "service:front"
        assert await system["front"].client(Middle).caller_of_back() == "service:middle"
