"""What a process is told when it is defined, and how it is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from microkit import DefinitionError, Event, Process, Service
from microkit.choreography.diagram import mermaid


class Asked(Event, topic="shop.orders", key="order_id"):
    order_id: str


class Packed(Event, topic="depot.parcels", key="parcel"):
    parcel: int
    order_id: str


class Sent(Event, topic="depot.parcels", key="parcel"):
    parcel: int
    order: str


class Cancelled(Event, topic="shop.orders", key="order_id"):
    order_id: str


BY: dict[type[Event], str] = {Asked: "order_id", Packed: "order_id", Sent: "order", Cancelled: "order_id"}
ORDER = Process("order", by=BY, events=[Asked, Packed, Sent], ends=[Sent, Cancelled], stuck_after=3600)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"name": "An order"}, "cannot be a process's name: write lower-case words joined by dashes"),
        ({"name": "a" * 101}, "cannot be a process's name"),
        ({"events": []}, "told of by no event: list them in the order they are expected"),
        ({"events": Asked}, "told of by no event"),
        ({"ends": []}, "never ends: name the events after which nothing more is expected"),
        ({"events": [Asked, "Packed"]}, "'Packed' is no event: list classes"),
        ({"events": [Asked, Event]}, "is no event: list classes"),
        ({"by": "parcel"}, r"Asked has no field 'parcel' \(it has order_id\). Give it one, or say which one it is"),
        ({"by": {Asked: "order_id"}}, "by= says for no field of Packed which order it tells of"),
        ({"stuck_after": 0}, "stuck_after is a number of seconds above 0"),
        ({"stuck_after": float("nan")}, "stuck_after is a number of seconds above 0"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_what_to_write_instead(given: dict[str, Any], told: str) -> None:
    good: dict[str, Any] = {"name": "order", "by": BY, "events": [Asked, Packed], "ends": [Sent]}
    with pytest.raises(DefinitionError, match=told):
        Process(**{**good, **given})


@pytest.mark.parametrize(
    ("seen", "missing", "awaited"),
    [
        ([], [], [Asked, Cancelled]),
        ([Asked], [], [Packed, Cancelled]),
        ([Packed], [Asked], [Sent, Cancelled]),
        ([Asked, Sent], [Packed], [Cancelled]),
        ([Cancelled], [], [Asked, Cancelled]),
    ],
)
def test_what_is_missing_and_what_may_come_next_follow_from_what_was_seen(
    seen: list[type[Event]], missing: list[type[Event]], awaited: list[type[Event]]
) -> None:
    types = [event.event_type for event in seen]
    assert ORDER.missing(types) == [event.event_type for event in missing]
    assert ORDER.awaited(types) == [event.event_type for event in awaited]


def test_a_service_follows_each_process_once_and_each_event_in_one_group() -> None:
    service = Service("desk")
    service.process(ORDER)
    assert [(each.group, each.event) for each in service.declared.listeners] == [
        ("desk.process.order", event) for event in (Asked, Packed, Sent, Cancelled)
    ]
    with pytest.raises(DefinitionError, match="desk has two processes called order"):
        service.process(Process("order", by="order_id", events=[Asked], ends=[Cancelled]))
    with pytest.raises(DefinitionError, match=r"service.process takes a definition, not 'order': booking = Process"):
        service.process("order")  # type: ignore[arg-type]  # that is what it is about


def test_the_diagram_of_a_process_is_this() -> None:
    assert mermaid(ORDER) == (
        "flowchart TD\n"
        '    begin(["order, by order_id, order"]) --> e0\n'
        '    e0["Asked<br/>shop.orders"]\n'
        "    e0 --> e1\n"
        '    e1["Packed<br/>depot.parcels"]\n'
        "    e1 --> e2\n"
        '    e2["Sent<br/>depot.parcels"]\n'
        "    e2 --> ended\n"
        '    x0["Cancelled<br/>shop.orders"]\n'
        "    begin -. at any time .-> x0\n"
        "    x0 --> ended\n"
        '    stuck{{"stuck: no event for 3600 s"}}\n'
        '    ended(["ended"])\n'
    )
