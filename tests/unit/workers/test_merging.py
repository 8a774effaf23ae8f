"""The metrics of several processes as those of one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from microkit.telemetry.metrics import Registry
from microkit.workers.merging import Whole


class Process:
    """A process that counts."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = Registry()
        self.calls = Counter("calls_total", "Calls.", ["kind"], registry=self.registry)
        self.seconds = Histogram("call_seconds", "Durations.", registry=self.registry, buckets=(0.1, 1.0))
        self.active = Gauge("calls_active", "Under way.", registry=self.registry)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def samples(whole: Whole) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = whole.exposition().decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(values) == len(found), "a series is there twice"
    return values


def test_counters_and_histograms_are_added_up_and_gauges_say_whose_they_are() -> None:
    one, two, whole = Process(), Process(), Whole()
    one.calls.labels("a").inc(3)
    two.calls.labels("a").inc(4)
    two.calls.labels('with "quotes"').inc()
    one.seconds.observe(0.05)
    two.seconds.observe(0.5)
    one.active.set(1)
    two.active.set(2)
    whole.told("1", one.text(), worker=1)
    whole.told("2", two.text(), worker=2)
    found = samples(whole)
    assert found["calls_total", (("kind", "a"),)] == 7
    assert found["calls_total", (("kind", 'with "quotes"'),)] == 1
    assert [found["call_seconds_bucket", (("le", le),)] for le in ("0.1", "1.0", "+Inf")] == [1, 2, 2]
    assert found["call_seconds_count", ()] == 2
    assert found["call_seconds_sum", ()] == 0.55
    assert found["calls_active", (("worker", "1"),)] == 1
    assert found["calls_active", (("worker", "2"),)] == 2


def test_what_an_ended_process_counted_stays_and_its_gauges_go() -> None:
    one, two, whole = Process(), Process(), Whole()
    one.calls.labels("a").inc(3)
    whole.told("1", one.text(), worker=1)
    whole.told("2", two.text(), worker=1)  # which takes the place of the first
    assert ("calls_active", (("worker", "1"),)) in samples(whole)
    whole.gone("1")
    whole.gone("1")
    assert samples(whole)["calls_total", (("kind", "a"),)] == 3
    two.calls.labels("a").inc()
    whole.told("2", two.text(), worker=1)
    whole.gone("2")
    assert "calls_active" not in {name for name, _ in samples(whole)}
    assert samples(whole)["calls_total", (("kind", "a"),)] == 4


def test_nothing_older_is_taken_after_the_last_words_of_a_process() -> None:
    one, whole = Process(), Whole()
    late = one.text()
    one.calls.labels("a").inc(3)
    whole.told("1", one.text(), worker=1, last=True)
    whole.told("1", late, worker=1)
    assert samples(whole)["calls_total", (("kind", "a"),)] == 3
    whole.gone("1")
    assert samples(whole)["calls_total", (("kind", "a"),)] == 3
