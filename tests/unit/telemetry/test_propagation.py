"""W3C Trace Context, with the cases of its own test suite."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import extract, inject, span_ids, trace_id_hex

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_remote_parent_is_read() -> None:
    context = get_current_span(extract(GOOD)).get_span_context()
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)
    assert context.is_remote
    assert context.trace_flags == 1
    assert not context.trace_state


@pytest.mark.parametrize(
    "traceparent",
    [
        *(None, "", " ", "garbage", "-", "00", GOOD[:-1], GOOD + "0", GOOD + " ", " " + GOOD, GOOD + "\n"),
        *(GOOD.upper(), GOOD.replace("-", "_"), GOOD + "-extra", GOOD + "-", GOOD.replace("00-", "0-", 1)),
        f"ff-{TRACE}-{SPAN}-01",
        f"FF-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01x",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[:-2]}+1-{SPAN}-01",
        f"00-{TRACE[:-2]}_1-{SPAN}-01",
        f"00-{TRACE[:-1]}\uff11-{SPAN}-01",
        f"00--{SPAN}-01",
        GOOD + "-" + "x" * 10_000,
        f"{GOOD},{GOOD}",
        "\x00" * 55,
        "\ud800" * 55,
    ],
)
def test_a_bad_traceparent_starts_a_new_trace(traceparent: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        context = extract(traceparent, "vendor=1")
    assert not context
    telemetry = Telemetry("billing")
    with telemetry.span("x", parent=context) as span:
        trace_id, _ = span_ids(span)
        assert trace_id != TRACE
    assert telemetry.ring is not None
    assert telemetry.ring.recent()[0].parent_id is None
    assert not caplog.records


@pytest.mark.parametrize("traceparent", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"])
def test_a_later_version_is_read_as_far_as_it_is_known(traceparent: str) -> None:
    assert get_current_span(extract(traceparent)).get_span_context().trace_id == int(TRACE, 16)


def test_extracting_ignores_the_span_that_is_current() -> None:
    with Telemetry("billing").span("x"):
        assert not extract(None)
        assert not extract("garbage")


STATES = [
    *("vendor=1", "a=1,b=2", "a=1 , b=2", "a=1,,b=2", "fw529a3039@dt=FfAAAAB", "a=1,", "1a@b=2", "a*/-_=x"),
    ",".join(f"k{number}=v" for number in range(32)),
]
BAD_STATES = [
    *("", "a", "=1", "a=", "A=1", "a=1,a=2", "a=1=2", "a b=1", "a=\u20ac", "a=1\n", "@b=1", "1=2", "a=1;b=2,c"),
    ",".join(f"k{number}=v" for number in range(33)),
    "a=" + "x" * 600,
    "k" * 257 + "=1",
]


@pytest.mark.parametrize("tracestate", STATES)
def test_a_tracestate_is_passed_on_in_its_order(tracestate: str) -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("x", parent=extract(GOOD, tracestate)), telemetry.span("y"):
        assert inject()["tracestate"] == ",".join(part.strip() for part in tracestate.split(",") if part.strip())


@pytest.mark.parametrize("tracestate", BAD_STATES)
def test_a_bad_tracestate_is_dropped_in_silence_and_the_parent_stands(
    tracestate: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        context = get_current_span(extract(GOOD, tracestate)).get_span_context()
    assert context.trace_id == int(TRACE, 16)
    assert not context.trace_state
    assert not caplog.records


@given(st.one_of(st.text(max_size=60), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{31,33}-[0-9a-f]{15,17}-[0-9a-f]{2}(-.?)?")))
def test_nothing_is_accepted_that_opentelemetry_refuses(text: str) -> None:
    theirs = TraceContextTextMapPropagator().extract({"traceparent": text})
    ours = extract(text)
    if ours:
        assert get_current_span(ours).get_span_context() == get_current_span(theirs).get_span_context()
    elif "\t" not in text and " " not in text:  # white space around it is the one thing that they allow and we do not
        assert not get_current_span(theirs).get_span_context().is_valid


def test_what_is_injected_is_what_opentelemetry_injects() -> None:
    telemetry = Telemetry("billing")
    for parent in (extract(None), extract(GOOD, "a=1"), extract(GOOD[:-1] + "0")):
        with telemetry.span("x", parent=parent):
            theirs: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(theirs)
            assert inject() == theirs


def test_outside_any_span_there_is_nothing_to_inject() -> None:
    assert inject() == {}
    assert trace_id_hex() == ""


def test_the_trace_id_is_told_in_hexadecimal() -> None:
    with Telemetry("billing").span("x", parent=extract(GOOD)) as span:
        assert trace_id_hex() == TRACE
        assert span_ids(span) == (TRACE, f"{span.get_span_context().span_id:016x}")
    with Telemetry("billing", exporter="none").span("x", parent=extract(GOOD)) as span:
        assert span_ids(span) == (TRACE, SPAN)
