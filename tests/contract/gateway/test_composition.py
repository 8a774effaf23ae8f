"""One operation of a gateway that asks several services at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pydantic import BaseModel

from microkit import context
from microkit.context import WorkContext
from microkit.errors import DeadlineExceeded, DefinitionError, Forbidden, RemoteProblem, Unauthorized, Unavailable
from microkit.gateway.composition import join

pytestmark = pytest.mark.anyio


class Page(BaseModel):
    name: str
    bills: list[int] | None
    payments: list[int] = []
    missing: list[str]


async def gives(value: Any, after: float = 0.0) -> Any:
    await asyncio.sleep(after)
    return value


async def fails(error: Exception) -> Any:
    await asyncio.sleep(0)
    raise error


async def test_the_parts_are_asked_for_at_once_and_joined() -> None:
    together = asyncio.Barrier(3)

    async def meets(value: Any) -> Any:
        await together.wait()
        return value

    page = await join(Page, name=meets("Ada"), bills=meets([1]), payments=meets([2]))
    assert page == Page(name="Ada", bills=[1], payments=[2], missing=[])


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("away"),
        DeadlineExceeded(),
        RemoteProblem("billing", "list", 500, {}),
        RemoteProblem("billing", "list", 429, {}),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
async def test_a_part_whose_service_fails_is_left_out_and_named(error: Exception) -> None:
    page = await join(Page, name=gives("Ada"), bills=fails(error), payments=fails(error))
    assert page == Page(name="Ada", bills=None, payments=[], missing=["bills", "payments"])


async def test_a_part_that_must_be_there_fails_the_whole_and_the_others_are_ended() -> None:
    ended = asyncio.Event()

    async def endless() -> list[int]:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return []

    with pytest.raises(Unavailable):
        await join(Page, name=fails(Unavailable("away")), bills=endless())
    assert ended.is_set()


@pytest.mark.parametrize("error", [Unauthorized(), Forbidden(), RemoteProblem("b", "list", 404, {}), KeyError("x")])
async def test_what_is_the_callers_fault_or_the_programs_is_raised(error: Exception) -> None:
    with pytest.raises(type(error)):
        await join(Page, name=gives("Ada"), bills=fails(error))


async def test_what_is_late_is_missing_and_the_callers_deadline_counts() -> None:
    page = await join(Page, within=0.05, name=gives("Ada"), bills=gives([1], 60))
    assert page.missing == ["bills"]
    with context.working(WorkContext(deadline=time.monotonic() + 0.05)):
        assert (await join(Page, within=60, name=gives("Ada"), bills=gives([1], 60))).missing == ["bills"]
    with pytest.raises(DeadlineExceeded):
        await join(Page, within=0.05, name=gives("Ada", 60), bills=gives([1]))


async def test_calls_below_know_how_long_the_whole_may_take() -> None:
    async def left() -> str:
        return str((context.remaining() or 99) <= 0.5)

    assert (await join(Page, within=0.5, name=left(), bills=gives([]))).name == "True"


class Untold(BaseModel):
    name: str | None


async def test_a_model_that_does_not_say_what_is_missing_or_fits_no_part_is_refused() -> None:
    with pytest.raises(DefinitionError, match="missing: list"):
        await join(Untold, name=gives("Ada"))
    with pytest.raises(DefinitionError, match="no field for colour"):
        await join(Page, name=gives("Ada"), bills=gives([]), colour=gives("red"))
    with pytest.raises(DefinitionError, match="needs name"):
        await join(Page, bills=gives([]))
