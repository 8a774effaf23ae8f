"""A registry for each service, under names that dashboards know."""

from __future__ import annotations

from threading import Thread

import pytest
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from microkit.errors import DefinitionError
from microkit.telemetry import Telemetry
from microkit.telemetry.metrics import CONTENT_TYPE, MOST_CHILDREN, SECONDS, Distribution, Registry


def samples(telemetry: Telemetry, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(telemetry.exposition().decode())
        for sample in family.samples
        if sample.name == name
    }


def test_a_request_is_counted_under_opentelemetrys_name() -> None:
    telemetry = Telemetry("billing")
    telemetry.metrics.http_server("GET", "/bills/{bill_id}", 200).observe(0.004)
    telemetry.metrics.http_server("GET", "/bills/{bill_id}", 200).observe(3)
    assert samples(telemetry, "http_server_request_duration_seconds_count") == {("GET", "200", "/bills/{bill_id}"): 2}
    assert samples(telemetry, "http_server_request_duration_seconds_sum") == {
        ("GET", "200", "/bills/{bill_id}"): pytest.approx(3.004)
    }
    buckets = samples(telemetry, "http_server_request_duration_seconds_bucket")
    assert {float(bound) for *_, bound in buckets} == {*SECONDS, float("inf")}


def test_a_method_that_nobody_knows_makes_no_series_of_its_own() -> None:
    telemetry = Telemetry("billing")
    for method in ("BREW", "get", "X" * 1000):
        telemetry.metrics.http_server(method, "", 405).observe(0)
    assert samples(telemetry, "http_server_request_duration_seconds_count") == {("_OTHER", "405", ""): 3}


def test_a_child_is_made_once() -> None:
    metrics = Telemetry("billing").metrics
    assert metrics.http_server("GET", "/", 200) is metrics.http_server("GET", "/", 200)
    assert metrics.http_server("GET", "/", 200) is not metrics.http_server("GET", "/", 201)


def test_a_family_may_be_asked_for_again() -> None:
    metrics = Telemetry("billing").metrics
    one = metrics.counter("outbox_published_total", "Published.", ("topic",))
    two = metrics.counter("outbox_published_total", "Published.", ("topic",))
    assert one is two


def test_a_family_asked_for_in_another_shape_is_refused() -> None:
    metrics = Telemetry("billing").metrics
    metrics.counter("outbox_published_total", "Published.", ("topic",))
    with pytest.raises(DefinitionError, match="outbox_published_total"):
        metrics.counter("outbox_published_total", "Published.", ("topic", "key"))
    with pytest.raises(DefinitionError, match="counter"):
        metrics.gauge("outbox_published_total", "Published.", ("topic",))


def test_the_number_of_labels_must_fit() -> None:
    family = Telemetry("billing").metrics.counter("outbox_published_total", "Published.", ("topic",))
    with pytest.raises(DefinitionError, match="topic"):
        family("a", "b")
    with pytest.raises(DefinitionError, match="topic"):
        family()


def test_a_family_without_labels_is_its_own_child() -> None:
    telemetry = Telemetry("billing")
    telemetry.metrics.gauge("outbox_backlog", "Waiting.")().set_function(lambda: 7)
    telemetry.metrics.counter("outbox_failed_total", "Failed.")().inc()
    assert samples(telemetry, "outbox_backlog") == {(): 7}
    assert samples(telemetry, "outbox_failed_total") == {(): 1}


def test_labels_without_bound_do_not_grow_without_bound() -> None:
    telemetry = Telemetry("billing")
    family = telemetry.metrics.counter("calls_total", "Calls.", ("path",))
    for number in range(MOST_CHILDREN + 500):
        family(f"/{number}").inc()
    counted = samples(telemetry, "calls_total")
    assert len(counted) == MOST_CHILDREN + 1
    assert counted["_OTHER",] == 500
    assert sum(counted.values()) == MOST_CHILDREN + 500


def test_the_page_has_no_created_series_and_is_in_the_text_format() -> None:
    telemetry = Telemetry("billing")
    telemetry.metrics.counter("calls_total", "Calls.")().inc()
    telemetry.metrics.http_server("GET", "/", 200).observe(0.1)
    Gauge("account_created", "A gauge that only sounds like one.", registry=telemetry.registry).set(5)
    assert b"calls_created" not in telemetry.exposition()
    assert b"seconds_created" not in telemetry.exposition()
    assert samples(telemetry, "account_created") == {(): 5}
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")


def test_the_page_tells_about_the_process() -> None:
    telemetry = Telemetry("billing")
    assert samples(telemetry, "process_resident_memory_bytes")[()] > 1_000_000
    assert samples(telemetry, "python_info")


def test_requests_under_way_are_a_gauge() -> None:
    telemetry = Telemetry("billing")
    telemetry.metrics.active.inc()
    assert samples(telemetry, "http_server_active_requests") == {(): 1}


@pytest.mark.parametrize("buckets", [SECONDS, (-1.0, 0.0, 1.0), (1, 2, float("inf"))])
def test_a_histogram_looks_as_prometheus_own_does(buckets: tuple[float, ...]) -> None:
    pages = []
    for kind in (Distribution, Histogram):
        registry = Registry()
        durations = kind("seconds", "How long.", ("route",), registry=registry, buckets=buckets)
        for route in ("/a", "/b"):
            for seconds in (-2.0, 0.0, 0.005, 0.0051, 1.0, 1.5, 99.0, float("inf")):
                durations.labels(route).observe(seconds)
        pages.append(generate_latest(registry))
    assert pages[0] == pages[1]
    assert b'le="+Inf"' in pages[0]


def test_observations_of_several_threads_are_all_counted() -> None:
    registry = CollectorRegistry()
    durations = Distribution("seconds", "How long.", registry=registry)

    def observe() -> None:
        for _ in range(5_000):
            durations.observe(0.01)

    threads = [Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.get_sample_value("seconds_count") == 20_000
    assert registry.get_sample_value("seconds_bucket", {"le": "0.01"}) == 20_000
    assert registry.get_sample_value("seconds_sum") == pytest.approx(200)
