"""Which traces are recorded, and the ids that all of them have."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from microkit.errors import ConfigurationError
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import extract, inject
from tests.unit.telemetry.spans import TRACEPARENT, UNSAMPLED, sdk_telemetry, spans_of

pytestmark = pytest.mark.anyio


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
