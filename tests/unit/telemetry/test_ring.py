"""The ring of recent spans: shared on purpose, bounded, read while others write."""

from __future__ import annotations

import threading

import pytest
from opentelemetry.trace import SpanKind

from microkit.telemetry import Telemetry, TraceRing
from microkit.telemetry.propagation import extract, inject

pytestmark = pytest.mark.anyio


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
