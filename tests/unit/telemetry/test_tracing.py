"""Spans in the ring, the same as the SDK would make them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace as global_trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, get_current_span

from microkit.errors import NotFound
from microkit.telemetry import Telemetry
from microkit.telemetry.otlp import SendingProvider
from microkit.telemetry.propagation import extract
from microkit.telemetry.ring import tree
from tests.unit.telemetry.spans import TRACEPARENT, UNSAMPLED, sdk_telemetry, spans_of

pytestmark = pytest.mark.anyio


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
