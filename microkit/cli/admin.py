"""``microkit admin``: what running instances say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from microkit.cli.admin_asking import Answer, Document, answered, ask, instances, of_workers, told_by
from microkit.cli.printing import clock, print_json, print_table, seconds, short
from microkit.errors import ConfigurationError

Row = Sequence[object]


def health(urls: list[str], service: str | None, folder: Path, *, json: bool) -> bool:
    """Prints the state of each instance; whether none is down."""
    answers = asyncio.run(ask(instances(urls, service, folder), "health"))
    ok = all(answer.document.get("status") in ("up", "degraded") for answer in answers)
    if json:
        print_json({"ok": ok, "instances": [{"instance": each.instance, **each.document} for each in answers]})
        return ok
    rows: list[Row] = []
    for each in answers:
        said = each.document
        rows.append((each.instance, "", said.get("status", each.trouble), said.get("state"), said.get("detail")))
        rows += [
            (
                each.instance,
                f"worker {worker['worker']}",
                worker.get("status"),
                worker.get("state"),
                worker.get("detail"),
            )
            for worker in each.document.get("workers", [])
        ]
        rows += [
            (each.instance, name, part["status"], "critical" if part["critical"] else "", _details(part))
            for name, part in each.document.get("parts", {}).items()
        ]
    print_table("Health", ("instance", "part", "status", "state", "details"), rows)
    return ok


def metrics(urls: list[str], service: str | None, folder: Path, match: str, *, json: bool) -> None:
    """Prints the samples whose metric has ``match`` in its name."""
    samples: list[dict[str, Any]] = [
        {"instance": answer.instance, "name": sample.name, "labels": sample.labels, "value": sample.value}
        for answer in answered(asyncio.run(ask(instances(urls, service, folder), "metrics")))
        for family in text_string_to_metric_families(_text(answer))
        for sample in family.samples
        if match in sample.name
    ]
    if json:
        print_json({"samples": samples})
        return
    rows = [
        (each["instance"], each["name"], ", ".join(f"{k}={v}" for k, v in each["labels"].items()), f"{each['value']:g}")
        for each in samples
        if not each["name"].endswith("_bucket")
    ]
    print_table("Metrics", ("instance", "metric", "labels", "value"), rows)


def log_level(urls: list[str], service: str | None, folder: Path, level: str | None, *, json: bool) -> None:
    """Prints the level of each instance, after it was changed if ``level`` says to what."""
    where = instances(urls, service, folder)
    asking = ask(where, "log-level") if level is None else ask(where, "log-level", method="PUT", body={"level": level})
    answers = asyncio.run(asking)
    for answer in answers:
        if answer.status != 200:
            raise ConfigurationError(f"{answer.instance} does not change its log level: {answer.trouble}")
    if json:
        print_json({"instances": [{"instance": each.instance, **each.document} for each in answers]})
        return
    rows = [(one["instance"], one["level"], one.get("before")) for each in answers for one in of_workers(each)]
    print_table("Log levels", ("instance", "level", "before"), rows)


def show(what: str, urls: list[str], service: str | None, folder: Path, *, json: bool) -> None:
    """Prints what the endpoint of that name says in each instance."""
    found = asyncio.run(told_by(instances(urls, service, folder), what))
    if json:
        print_json({"instances": found})
        return
    for title, headings, rows_of in _TABLES[what]:
        rows = [(each["instance"], *row) for each in found for row in rows_of(each)]
        print_table(title, ("instance", *headings), rows)


def _text(answer: Answer) -> str:
    if answer.status != 200:
        raise ConfigurationError(f"{answer.instance} cannot tell: {answer.trouble}")
    return answer.text


def _details(part: Mapping[str, Any]) -> str:
    told = {k: v for k, v in part.items() if k not in ("status", "critical", "milliseconds") and v not in (None, "")}
    return short(", ".join(f"{name} {value}" for name, value in told.items()))


def _versions(document: Document) -> list[Row]:
    version = document["version"]
    return [(version, document["microkit"], document["python"], clock(document["started"]),
             seconds(document["uptime_seconds"]))]  # fmt: skip


def _settings(document: Document) -> list[Row]:
    return [
        (each["key"], each["value"], each["source"]) for each in document["settings"] if each["source"] != "default"
    ]


def _breakers(document: Document) -> list[Row]:
    return [(each["service"], each["breaker"], each["state"], each["failures"]) for each in document["breakers"]]


def _standings(document: Document) -> list[Row]:
    return [
        (each["service"], each["instances"], seconds(each["stale_for"]), each["expired"], each["trouble"])
        for each in document["discovery"]
    ]


def _called(document: Document) -> list[Row]:
    return [
        (name, state["instances"], state["ejected"], ", ".join(state["open"]), state["breaker"],
         state["active"], state["retry_budget"])
        for name, state in document["services"].items()
    ]  # fmt: skip


def _engine(document: Document) -> list[Row]:
    engine = document["engine"]
    return [("ok" if engine["ok"] else "not ok", engine["in_flight"], engine["stuck"], engine["error"])]


def _sagas(document: Document) -> list[Row]:
    return [
        (each["id"], each["name"], each["status"], each["step"], each["attempts"], clock(each["created_at"]),
         short(each["error"], 60))
        for each in document["latest"]
    ]  # fmt: skip


def _relay(document: Document) -> list[Row]:
    relay = document["relay"]
    state = "stalled" if relay["stalled"] else "works"
    return [(state, relay["shards"], len(document["relays"]), len(document["parked"]), relay["trouble"])]


def _topics(document: Document) -> list[Row]:
    return [
        (each["topic"], each["pending"], each["failing"], each["parked"], each["published"], seconds(each["oldest"]))
        for each in document["topics"]
    ]


def _groups(document: Document) -> list[Row]:
    return [
        (each["group"], "stalled" if each["stalled"] else "works", each["in_flight"], each["retrying"],
         each["restarts"], each["trouble"])
        for each in document["groups"]
    ]  # fmt: skip


_Table = tuple[str, tuple[str, ...], Callable[[Document], list[Row]]]

_TABLES: Final[Mapping[str, tuple[_Table, ...]]] = {
    "info": (
        ("Versions", ("version", "microkit", "Python", "started (UTC)", "up for"), _versions),
        ("Settings that are not the default", ("setting", "value", "from"), _settings),
    ),
    "breakers": (("Breakers", ("service", "breaker", "state", "failures"), _breakers),),
    "endpoints": (
        ("Known", ("service", "instances", "stale for", "expired", "trouble"), _standings),
        (
            "Called",
            ("service", "instances", "ejected", "breaker open", "breaker", "active", "retry budget"),
            _called,
        ),
    ),
    "sagas": (
        ("Engines", ("state", "in flight", "stuck", "error"), _engine),
        ("The latest", ("saga", "name", "status", "step", "attempts", "began (UTC)", "error"), _sagas),
    ),
    "outbox": (
        ("Relays", ("state", "shards", "relays", "parked rows", "trouble"), _relay),
        ("Events", ("topic", "pending", "failing", "parked", "published", "oldest"), _topics),
    ),
    "consumers": (("Consumer groups", ("group", "state", "in flight", "retrying", "restarts", "trouble"), _groups),),
}
