"""Spans in the ring, the same as the SDK would make them."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace as global_trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span

from microkit.errors import ConfigurationError, NotFound, Unavailable
from microkit.telemetry import RecordedSpan, Telemetry, TraceRing
from microkit.telemetry.otlp import SendingProvider
from microkit.telemetry.propagation import extract, inject
from microkit.telemetry.recorder import MOST_ATTRIBUTES, MOST_CHARACTERS, MOST_EVENTS
from microkit.telemetry.ring import tree

pytestmark = pytest.mark.anyio

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def spans_of(telemetry: Telemetry) -> list[RecordedSpan]:
    assert telemetry.ring is not None
    return telemetry.ring.recent()[::-1]


def story(telemetry: Telemetry) -> None:
    """Some of everything."""
    with telemetry.span("GET /bills", kind=SpanKind.SERVER, attributes={"http.route": "/bills"}) as server:
        server.set_attribute("user.id", "u1")
        server.add_event("read", {"rows": 3})
        context = server.get_span_context()
        with telemetry.span("SELECT", kind=SpanKind.CLIENT) as client:
            client.update_name("SELECT bill")
            client.set_status(StatusCode.OK)
            client.set_status(StatusCode.ERROR, "too late")
        with pytest.raises(ValueError, match="broken"), telemetry.span("work"):
            raise ValueError("broken")
        with pytest.raises(NotFound), telemetry.span("look up"):
            raise NotFound
        manual = telemetry.tracer.start_span("manual", links=[Link(context)])
        manual.set_status(Status(StatusCode.ERROR, "no"))
        manual.end()
        manual.set_attribute("late", True)
        manual.end()
    with telemetry.span("consume", kind=SpanKind.CONSUMER, parent=extract(TRACEPARENT), links=[Link(context)]):
        pass
    with telemetry.span("dropped", parent=extract(UNSAMPLED)) as dropped:
        assert not dropped.is_recording()


def shape(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans with their ids replaced by names, so that two runs compare."""
    names = {span["span_id"]: span["name"] for span in spans}
    return [
        {**span, "span_id": "", "trace_id": "", "parent": names.get(span["parent"], span["parent"]), "links": names_of}
        for span in spans
        for names_of in [[names.get(link, link) for link in span["links"]]]
    ]


def of_ring(telemetry: Telemetry) -> list[dict[str, Any]]:
    return [
        {
            "name": span.name,
            "kind": span.kind,
            "trace_id": span.trace_id,
            "span_id": span.span_id,
            "parent": span.parent_id,
            "status": span.status,
            "description": span.status_description,
            "attributes": dict(span.attributes),
            "events": [(event.name, set(event.attributes)) for event in span.events],
            "links": [link.span_id for link in span.links],
        }
        for span in spans_of(telemetry)
    ]


def of_sdk(exporter: InMemorySpanExporter) -> list[dict[str, Any]]:
    return [
        {
            "name": span.name,
            "kind": span.kind.name.lower(),
            "trace_id": f"{span.context.trace_id:032x}",
            "span_id": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "status": span.status.status_code.name.lower(),
            "description": span.status.description,
            "attributes": dict(span.attributes or {}),
            "events": [(event.name, set(event.attributes or {})) for event in span.events],
            "links": [f"{link.context.span_id:016x}" for link in span.links],
        }
        for span in exporter.get_finished_spans()
    ]


def sdk_telemetry(sampling: float = 1.0) -> tuple[Telemetry, InMemorySpanExporter]:
    provider = SdkTracerProvider(
        sampler=ParentBasedTraceIdRatio(sampling), resource=Resource.get_empty(), shutdown_on_exit=False
    )
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Telemetry("billing", provider=provider), exporter


def test_the_ring_holds_the_same_tree_as_the_sdk_exports() -> None:
    ours = Telemetry("billing")
    theirs, exporter = sdk_telemetry()
    story(ours)
    story(theirs)
    assert shape(of_ring(ours)) == shape(of_sdk(exporter))
    assert [span["name"] for span in of_ring(ours)] == [
        *("SELECT bill", "work", "look up", "manual", "GET /bills", "consume"),
    ]


def test_what_goes_to_a_collector_is_what_the_sdk_would_send() -> None:
    exporter = InMemorySpanExporter()
    provider = SendingProvider("billing", "1.0", 1.0, exporter)
    theirs, sdk_exporter = sdk_telemetry()
    story(Telemetry("billing", provider=provider))
    story(theirs)
    provider.shut_down()
    assert shape(of_sdk(exporter)) == shape(of_sdk(sdk_exporter))

    def encoded(exported: InMemorySpanExporter) -> list[tuple[str, int, int, int, int]]:
        (resource,) = encode_spans(exported.get_finished_spans()).resource_spans
        return [
            (span.name, span.kind, span.flags, span.dropped_attributes_count, span.status.code)
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    assert encoded(exporter) == encoded(sdk_exporter)


def test_spans_of_one_trace_have_its_id_and_their_parents() -> None:
    telemetry = Telemetry("billing")
    story(telemetry)
    spans = {span.name: span for span in spans_of(telemetry)}
    assert spans["SELECT bill"].parent_id == spans["GET /bills"].span_id
    assert spans["SELECT bill"].trace_id == spans["GET /bills"].trace_id
    assert spans["GET /bills"].parent_id is None
    assert (spans["consume"].trace_id, spans["consume"].parent_id) == (TRACEPARENT[3:35], TRACEPARENT[36:52])
    assert all(span.end_ns >= span.start_ns > 10**18 and span.seconds >= 0 for span in spans.values())


def test_a_trace_is_shown_as_a_tree() -> None:
    telemetry = Telemetry("billing")
    story(telemetry)
    assert telemetry.ring is not None
    (root,) = [span for span in spans_of(telemetry) if span.name == "GET /bills"]
    (top,) = tree(telemetry.ring.trace(root.trace_id))
    assert [(depth, span.name) for depth, span in top.walk()] == [
        *((0, "GET /bills"), (1, "SELECT bill"), (1, "work"), (1, "look up"), (1, "manual")),
    ]
    (alone,) = tree(telemetry.ring.trace(TRACEPARENT[3:35]))
    assert alone.span.name == "consume"


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
    assert "test_tracing.py" in event.attributes["exception.stacktrace"]
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


def test_two_telemetries_in_one_process_share_nothing() -> None:
    one, two = Telemetry("billing"), Telemetry("billing")
    with one.span("one"):
        one.metrics.http_server("GET", "/", 200).observe(0.1)
    with two.span("two"):
        pass
    assert [span.name for span in spans_of(one)] == ["one"]
    assert [span.name for span in spans_of(two)] == ["two"]
    assert one.ring is not two.ring
    assert one.registry is not two.registry
    assert one.tracer is not two.tracer
    assert one.logger is not two.logger
    assert b'http_route="/"' in one.exposition()
    assert b'http_route="/"' not in two.exposition()


def test_no_telemetry_becomes_the_process_global_one() -> None:
    before = global_trace._TRACER_PROVIDER
    telemetry = Telemetry("billing")
    with telemetry.span("x"):
        pass
    Telemetry("payment", exporter="none")
    assert global_trace._TRACER_PROVIDER is before is None


def test_services_may_share_a_ring_on_purpose() -> None:
    ring = TraceRing()
    billing, payment = Telemetry("billing", ring=ring), Telemetry("payment", ring=ring)
    with payment.span("pay", kind=SpanKind.CLIENT) as outer:
        headers = inject()
        with billing.span("read", kind=SpanKind.SERVER, parent=extract(headers["traceparent"])):
            pass
    spans = ring.trace(f"{outer.get_span_context().trace_id:032x}")
    assert [(span.service, span.name) for span in spans] == [("payment", "pay"), ("billing", "read")]
    assert spans[1].parent_id == spans[0].span_id


def test_an_empty_ring_that_is_given_is_the_one_that_is_used() -> None:
    ring = TraceRing()
    assert Telemetry("billing", ring=ring).ring is ring


def test_a_ring_forgets_the_oldest() -> None:
    ring = TraceRing(capacity=3)
    telemetry = Telemetry("billing", ring=ring)
    for number in range(10):
        with telemetry.span(str(number)):
            pass
    assert [span.name for span in ring.recent()] == ["9", "8", "7"]
    assert [span.name for span in ring.recent(2)] == ["9", "8"]
    assert ring.recent(0) == []
    assert len(ring) == 3
    ring.clear()
    assert ring.recent() == []


def test_a_trace_is_found_by_the_beginning_of_its_id() -> None:
    telemetry = Telemetry("billing")
    same, other = "4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f35" + "0" * 23 + "1"
    for trace_id, name in ((same, "first"), (other, "last"), (other, "same as last")):
        with telemetry.span(name, parent=extract(f"00-{trace_id}-00f067aa0ba902b7-01")):
            pass
    ring = telemetry.ring
    assert ring is not None
    assert [span.name for span in ring.trace(same)] == ["first"]
    assert [span.name for span in ring.trace(same[:9])] == ["first"]
    assert [span.name for span in ring.trace(same[:8])] == ["last", "same as last"]
    assert ring.trace(same[:7]) == []


@pytest.mark.parametrize("trace_id", ["", "zz", "0" * 32, "0" * 33, "nothing", "-1", "+00000001", "1_000_000"])
def test_a_trace_that_is_not_there_is_empty(trace_id: str) -> None:
    assert TraceRing().trace(trace_id) == []


def test_a_ring_is_read_while_other_threads_write() -> None:
    ring = TraceRing(capacity=500)
    telemetry = Telemetry("billing", ring=ring)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with telemetry.span("x"):
                pass

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            assert len(ring.recent(1000)) <= 500
            ring.trace("ab")
    finally:
        stop.set()
        for thread in threads:
            thread.join()


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


def sampled(telemetry: Telemetry, count: int) -> int:
    return sum(telemetry.tracer.start_span("x").is_recording() for _ in range(count))


@pytest.mark.parametrize(
    ("sampling", "least", "most"), [(0.0, 0, 0), (0.1, 100, 320), (0.5, 850, 1150), (1.0, 2000, 2000)]
)
def test_new_traces_are_recorded_in_the_share_that_was_asked_for(sampling: float, least: int, most: int) -> None:
    assert least <= sampled(Telemetry("billing", sampling=sampling), 2000) <= most


def test_sampling_decides_as_the_sdk_does() -> None:
    """By the trace id, so that services with one share record the same traces, whichever library they use."""
    ours, (theirs, _) = Telemetry("billing", sampling=0.3), sdk_telemetry(0.3)
    sampler = theirs.provider.sampler  # type: ignore[attr-defined]  # the SDK's own attribute
    for _ in range(500):
        context = ours.tracer.start_span("x").get_span_context()
        decision = sampler.should_sample(None, context.trace_id, "x").decision.is_sampled()
        assert decision == bool(context.trace_flags & 1)


@pytest.mark.parametrize("sampling", [0.0, 1.0])
def test_a_trace_that_came_in_is_recorded_as_its_sender_decided(sampling: float) -> None:
    telemetry = Telemetry("billing", sampling=sampling)
    assert telemetry.tracer.start_span("x", extract(TRACEPARENT)).is_recording()
    assert not telemetry.tracer.start_span("x", extract(UNSAMPLED)).is_recording()


def test_spans_under_an_unsampled_one_are_not_recorded_and_keep_its_trace() -> None:
    telemetry = Telemetry("billing", sampling=0.0)
    with telemetry.span("outer") as outer:
        trace_id = outer.get_span_context().trace_id
        assert trace_id
        with telemetry.span("inner") as inner:
            assert inner.get_span_context().trace_id == trace_id
            assert inject()["traceparent"].endswith("-00")
            inner.set_attribute("a", 1)
            inner.add_event("b")
    assert spans_of(telemetry) == []


def test_without_an_exporter_trace_ids_are_still_made_and_passed_on() -> None:
    telemetry = Telemetry("billing", exporter="none")
    assert telemetry.ring is None
    with telemetry.span("x"):
        assert inject()["traceparent"].endswith("-00")
    with telemetry.span("x", parent=extract(TRACEPARENT, "vendor=1")):
        assert inject() == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


@pytest.mark.parametrize("sampling", [-0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(sampling: float) -> None:
    with pytest.raises(ConfigurationError, match="trace_sampling"):
        Telemetry("billing", sampling=sampling)


def test_ids_do_not_repeat_where_a_program_seeds_its_random_numbers() -> None:
    def ids() -> list[int]:
        random.seed(1)
        tracer = Telemetry("billing").tracer
        return [tracer.start_span("x").get_span_context().trace_id for _ in range(5)]

    assert not set(ids()) & set(ids())


def test_ids_do_not_repeat_in_a_forked_process() -> None:
    program = """
import os
from microkit.telemetry import Telemetry
tracer = Telemetry("billing").tracer
read, write = os.pipe()
child = os.fork()
ids = " ".join(format(tracer.start_span("x").get_span_context().trace_id, "x") for _ in range(3))
if not child:
    os.write(write, ids.encode())
    os._exit(0)
os.waitpid(child, 0)
print(ids, os.read(read, 1000).decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 6


async def test_start_as_current_span_decorates_coroutine_functions() -> None:
    telemetry = Telemetry("billing")
    seen: list[bool] = []

    @telemetry.tracer.start_as_current_span("work")
    async def work() -> None:
        await asyncio.sleep(0)
        seen.append(get_current_span().is_recording())

    await work()
    with telemetry.tracer.start_as_current_span("block") as span:
        assert get_current_span() is span
    assert seen == [True]
    assert [span.name for span in spans_of(telemetry)] == ["work", "block"]


def test_a_span_used_as_a_block_of_its_own_records_its_exception() -> None:
    telemetry = Telemetry("billing")
    with pytest.raises(ValueError, match="no"), telemetry.tracer.start_span("work"):
        raise ValueError("no")
    (span,) = spans_of(telemetry)
    assert (span.status, span.events[0].name) == ("error", "exception")


def test_the_provider_gives_the_tracer_to_instrumentation_libraries() -> None:
    telemetry = Telemetry("billing")
    with telemetry.provider.get_tracer("some.library", "1.0").start_span("x"):
        pass
    assert [span.service for span in spans_of(telemetry)] == ["billing"]


@pytest.mark.parametrize("make", [lambda: Telemetry("billing"), lambda: Telemetry("billing", exporter="none")])
async def test_closing_twice_does_no_harm(make: Callable[[], Telemetry]) -> None:
    telemetry = make()
    await telemetry.close()
    await telemetry.close()
