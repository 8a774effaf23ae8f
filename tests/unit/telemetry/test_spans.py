"""One span: current inside its block, what it records of errors, and its bounds."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.trace import get_current_span

from microkit.errors import NotFound, Unavailable
from microkit.telemetry import Telemetry
from microkit.telemetry.recorder import MOST_ATTRIBUTES, MOST_CHARACTERS, MOST_EVENTS
from tests.unit.telemetry.spans import spans_of

pytestmark = pytest.mark.anyio


def test_the_span_is_current_inside_the_block_only() -> None:
    telemetry = Telemetry("billing")
    before = get_current_span()
    with telemetry.span("outer") as outer:
        assert get_current_span() is outer
        with telemetry.span("inner") as inner:
            assert get_current_span() is inner
        assert get_current_span() is outer
    assert get_current_span() is before
    assert not outer.is_recording()


def test_an_exception_is_recorded_without_its_credentials() -> None:
    telemetry = Telemetry("billing")
    with pytest.raises(RuntimeError), telemetry.span("connect"):
        raise RuntimeError("cannot reach postgresql+asyncpg://billing:hunter2@db/billing, token=abc.def")
    (span,) = spans_of(telemetry)
    assert span.status == "error"
    assert span.attributes["error.type"] == "RuntimeError"
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "RuntimeError"
    assert "test_spans.py" in event.attributes["exception.stacktrace"]
    for text in (str(span.status_description), *event.attributes.values()):
        assert "hunter2" not in text
        assert "abc.def" not in text


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_printed_is_recorded() -> None:
    telemetry = Telemetry("billing")
    with pytest.raises(Unprintable), telemetry.span("work"):
        raise Unprintable
    (span,) = spans_of(telemetry)
    assert span.events[0].attributes["exception.type"].endswith("Unprintable")


@pytest.mark.parametrize(("problem", "status"), [(NotFound, "unset"), (Unavailable, "error")])
def test_a_problem_is_an_error_from_500_on(problem: type[Exception], status: str) -> None:
    telemetry = Telemetry("billing")
    with pytest.raises(problem), telemetry.span("work"):
        raise problem
    (span,) = spans_of(telemetry)
    assert span.status == status
    assert span.attributes["error.type"] == problem.__name__


async def test_a_cancelled_span_ends_and_is_no_error() -> None:
    telemetry = Telemetry("billing")
    inside = asyncio.Event()

    async def wait() -> None:
        with telemetry.span("work"):
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(wait())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = spans_of(telemetry)
    assert span.status == "unset"
    assert [event.name for event in span.events] == ["cancelled"]


async def test_tasks_at_the_same_time_do_not_mix_their_spans() -> None:
    telemetry = Telemetry("billing")

    async def work(number: int) -> None:
        with telemetry.span(f"outer {number}"):
            await asyncio.sleep(0)
            with telemetry.span(f"inner {number}"):
                await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(20)))
    spans = {span.name: span for span in spans_of(telemetry)}
    for number in range(20):
        assert spans[f"inner {number}"].parent_id == spans[f"outer {number}"].span_id
    assert len({span.trace_id for span in spans.values()}) == 20


def test_a_span_is_bounded() -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("big", attributes={"body": "x" * 100_000}) as span:
        for number in range(1000):
            span.set_attribute(f"a{number}", number)
            span.add_event("e")
            span.add_link(span.get_span_context())
    (recorded,) = spans_of(telemetry)
    assert len(recorded.attributes["body"]) == MOST_CHARACTERS
    assert len(recorded.attributes) == MOST_ATTRIBUTES
    assert len(recorded.events) == MOST_EVENTS
    assert len(recorded.links) <= MOST_EVENTS


def test_a_span_used_as_a_block_of_its_own_records_its_exception() -> None:
    telemetry = Telemetry("billing")
    with pytest.raises(ValueError, match="no"), telemetry.tracer.start_span("work"):
        raise ValueError("no")
    (span,) = spans_of(telemetry)
    assert (span.status, span.events[0].name) == ("error", "exception")
