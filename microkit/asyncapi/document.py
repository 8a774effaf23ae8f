"""The AsyncAPI 3 document of one service or of several that belong together.

A channel is a topic, a message is an event, named by its CloudEvents type. A service sends the events that are its own
(:meth:`microkit.declared.Declared.sent`) and receives those that it handles, one operation a topic and consumer group.
What AsyncAPI has no word for stands under ``x-microkit``: version, ordering key, upcasters, and what a consumer takes
where that is more than what is written. ``microkit events check`` reads it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

from microkit.asyncapi.schemas import EventSchemas
from microkit.compatibility import EXTENSION
from microkit.declared import Declared
from microkit.message import Event

Document = dict[str, Any]

_ENVELOPE: Final = "CloudEvent"
_HEADERS: Final[Document] = {
    "type": "object",
    "title": "CloudEvents 1.0, binary mode",
    "description": "The attributes of the envelope, as the Kafka binding names them, on every bus.",
    "required": ["ce_specversion", "ce_id", "ce_source", "ce_type", "ce_schemaversion", "content-type"],
    "properties": {
        "ce_specversion": {"type": "string", "const": "1.0"},
        "ce_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "description": "With ce_source it names the event: a message with both the same is a copy.",
        },
        "ce_source": {"type": "string", "maxLength": 255, "description": "The publishing service."},
        "ce_type": {"type": "string"},
        "ce_time": {"type": "string", "format": "date-time"},
        "ce_subject": {"type": "string"},
        "ce_partitionkey": {"type": "string", "description": "Events of one key are in order."},
        "ce_schemaversion": {"type": "string", "pattern": "^[0-9]+$", "description": "The payload's major version."},
        "content-type": {"type": "string", "const": "application/json"},
        "traceparent": {"type": "string", "description": "W3C Trace Context: the event belongs to this trace."},
        "tracestate": {"type": "string"},
    },
}


def document(
    services: Sequence[Declared], *, title: str, version: str, servers: Mapping[str, Document] | None = None
) -> Document:
    """The whole document. ``servers`` are by name, as AsyncAPI has them."""
    known = _Known(services)
    channels: Document = {}
    operations: Document = {}
    for service in services:
        for sent_topic, sent in _by_topic(service.sent()).items():
            name = f"{service.name}.send.{sent_topic}"
            operations[name] = known.operation("send", service, sent_topic, sent)
        for group, listeners in service.groups().items():
            received = _by_topic([listener.event for listener in listeners])
            for topic, events in received.items():
                name = f"{group}.receive" if len(received) == 1 else f"{group}.receive.{topic}"
                operation = known.operation("receive", service, topic, events)
                binding = {"groupId": {"type": "string", "enum": [group]}, "bindingVersion": "0.5.0"}
                operations[name] = {**operation, "bindings": {"kafka": binding}}
    for topic, events in _by_topic(known.events).items():
        messages = {event.__name__: {"$ref": f"#/components/messages/{event.event_type}"} for event in events}
        channels[topic] = {"address": topic, "messages": dict(sorted(messages.items()))}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version},
        **({"servers": dict(servers)} if servers else {}),
        "defaultContentType": "application/json",
        "channels": dict(sorted(channels.items())),
        "operations": dict(sorted(operations.items())),
        "components": known.components(),
    }


class _Known:
    """The events of the services, each type once: its owner's class, where a consumer has one of its own."""

    def __init__(self, services: Sequence[Declared]) -> None:
        sent = [event for service in services for event in service.sent()]
        received = [listener.event for service in services for listener in service.heard()]
        by_type: dict[str, type[Event]] = {}
        for event in [*sent, *received]:
            by_type.setdefault(event.event_type, event)
        self.events = [by_type[name] for name in sorted(by_type)]
        self._schemas = EventSchemas(self.events)

    def operation(self, action: str, service: Declared, topic: str, events: Sequence[type[Event]]) -> Document:
        channel = f"#/channels/{topic}"
        return {
            "action": action,
            "channel": {"$ref": channel},
            "tags": [{"name": service.name}],
            "messages": [{"$ref": f"{channel}/messages/{name}"} for name in sorted({one.__name__ for one in events})],
        }

    def components(self) -> Document:
        return {
            "messages": {event.event_type: self._message(event) for event in self.events},
            "schemas": {_ENVELOPE: _HEADERS, **self._schemas.components} if self.events else {},
        }

    def _message(self, event: type[Event]) -> Document:
        own = {"ce_type": {"const": event.event_type}, "ce_schemaversion": {"const": str(event.event_version)}}
        told = inspect.cleandoc(event.__doc__ or "").partition("\n\n")
        about = {"summary": " ".join(told[0].split()), "description": told[2]}
        more: Document = {"version": event.event_version, "key": event.event_key}
        if event.event_upcasters:
            more["upcasts"] = list(event.event_upcasters)
        if (read := self._schemas.read(event)) is not None:
            more["reads"] = read
        return {
            "name": event.event_type,
            "title": event.__name__,
            **{name: text for name, text in about.items() if text},
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "allOf": [{"$ref": f"#/components/schemas/{_ENVELOPE}"}, {"properties": own}],
            },
            "payload": self._schemas.written(event),
            "bindings": {
                "kafka": {
                    "key": {"type": "string", "description": f"The event's {event.event_key}"},
                    "bindingVersion": "0.5.0",
                }
            },
            EXTENSION: more,
        }


def _by_topic(events: Sequence[type[Event]]) -> dict[str, list[type[Event]]]:
    found: dict[str, list[type[Event]]] = {}
    for event in events:
        found.setdefault(event.event_topic, []).append(event)
    return found
