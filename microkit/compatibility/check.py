"""Whether the events of a new AsyncAPI document can take the place of those of an old one.

Two things must hold, named as schema registries name them. *Backward*: who has the new schemas reads the messages of
the old ones, which are still in the broker, in outboxes and in dead-letter topics. *Forward*: who has the old schemas,
because it is not deployed yet, reads the messages of the new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from microkit.compatibility.fields import fields_of
from microkit.compatibility.published import Published, published
from microkit.compatibility.reading import differences
from microkit.compatibility.schema import Node


class Mode(StrEnum):
    """Which messages must be readable by whom."""

    FULL = "full"
    BACKWARD = "backward"
    FORWARD = "forward"


@dataclass(frozen=True, slots=True)
class Finding:
    """One change. ``pointer`` is a JSON pointer into the ``document`` (``old`` or ``new``) that it stands in.

    ``breaks`` says whether the change is refused; else it is a warning about the order of deployment.
    """

    event: str
    code: str
    document: str
    pointer: str
    what: str
    why: str
    remedy: str
    field: str = ""
    breaks: bool = True


_BUMP: Final = "raise version= and write an upcaster from the old version (@upcast)"
_REPLAYED: Final = (
    "messages that were published before are read with the new schema: from the broker, from outboxes, when dead "
    "letters are redriven. They would become dead letters"
)
_DEPLOYED: Final = (
    "services that are deployed with the old schema read what the new one publishes. They would put it into the "
    "dead-letter topic"
)
_CONSUMERS_FIRST: Final = "deploy the services that listen to {topic} with the new contracts before the publisher"
_REMEDIES: Final = {
    (Mode.BACKWARD, "required"): f"give the field a default, or {_BUMP}",
    (Mode.FORWARD, "required"): f"keep the field, without a default, or {_BUMP}",
    (Mode.FORWARD, "enum"): f"keep to the old values, or {_BUMP}",
}


def check(
    old: Any,
    new: Any,
    *,
    mode: Mode = Mode.FULL,
    accept: Collection[str] = (),
) -> list[Finding]:
    """Compares two AsyncAPI 3 documents. Changes of the events named in ``accept`` are warnings only.

    Raises:
        ConfigurationError: one of them is no AsyncAPI 3 document.
    """
    before, after = published(old, "the old document"), published(new, "the new document")
    found = [finding for name, event in before.items() for finding in _changes(event, after.get(name), after, mode)]
    known = {event.topic for event in before.values()}
    found += [_added(event) for name, event in after.items() if name not in before and event.topic in known]
    return [_accepted(finding) if finding.event in accept else finding for finding in found]


def _changes(old: Published, new: Published | None, after: Mapping[str, Published], mode: Mode) -> Iterator[Finding]:
    if new is None:
        yield _gone(old, after)
        return
    place = new.node.pointer
    if new.topic != old.topic:
        yield Finding(
            old.name,
            "topic",
            "new",
            place,
            f"the topic changed from {old.topic} to {new.topic}",
            "consumers listen to the old topic, and events of one key are no longer in order across the two",
            "keep the topic; to move an event, publish a new one beside the old one until no consumer needs that",
        )
    if old.key is not None and new.key != old.key:
        yield Finding(
            old.name,
            "key",
            "new",
            f"{place}/x-microkit/key",
            f"the ordering key changed from {old.key} to {new.key}",
            "events that were in order are no longer: old and new ones go to different partitions",
            "keep the key; for another order declare a new event",
        )
    if new.version != old.version:
        yield from _other_version(old, new, mode)
        return
    lost = old.upcasts - new.upcasts
    if lost and mode is not Mode.FORWARD:
        yield Finding(
            old.name,
            "upcaster",
            "old",
            f"{old.node.pointer}/x-microkit/upcasts",
            f"the upcaster from version {min(lost)} is gone",
            _REPLAYED,
            "keep it as long as a message of that version may come",
        )
    yield from _schemas(old, new, mode)


def _gone(old: Published, after: Mapping[str, Published]) -> Finding:
    moved = next((event for event in after.values() if event.title == old.title), None)
    return Finding(
        old.name,
        "removed" if moved is None else "topic",
        "old",
        old.node.pointer,
        "the event is gone" if moved is None else f"the topic changed from {old.topic} to {moved.topic}",
        "a message of a type that nobody declares becomes a dead letter (unknown-type)",
        f"keep the declaration as long as a message of that type may come; then let it go with --accept {old.name}",
    )


def _other_version(old: Published, new: Published, mode: Mode) -> Iterator[Finding]:
    place = f"{new.node.pointer}/x-microkit"
    if new.version < old.version:
        yield Finding(
            old.name,
            "version",
            "new",
            f"{place}/version",
            f"the version fell from {old.version} to {new.version}",
            "messages of the higher version become dead letters (newer-version)",
            "versions only rise: take a higher one",
        )
        return
    missing = sorted({*old.upcasts, old.version} - new.upcasts)
    if missing and mode is not Mode.FORWARD:
        yield Finding(
            old.name,
            "upcaster",
            "new",
            f"{place}/upcasts",
            f"version {new.version} has no upcaster from version {missing[0]}",
            _REPLAYED,
            f"write one: @upcast(from_version={missing[0]})",
        )
    yield Finding(
        old.name,
        "version",
        "new",
        f"{place}/version",
        f"the version rose from {old.version} to {new.version}",
        "services that are deployed with the old contracts put the new version into the dead-letter topic "
        "(newer-version), whence it can be redriven",
        _CONSUMERS_FIRST.format(topic=new.topic),
        breaks=False,
    )


def _added(new: Published) -> Finding:
    return Finding(
        new.name,
        "added",
        "new",
        new.node.pointer,
        f"the event is new on {new.topic}, which had others before",
        "services that listen to this topic with the old contracts put it into the dead-letter topic (unknown-type), "
        "whence it can be redriven",
        _CONSUMERS_FIRST.format(topic=new.topic),
        breaks=False,
    )


def _schemas(old: Published, new: Published, mode: Mode) -> Iterator[Finding]:
    """What is written against what is written, and what is read against what is read.

    The first finds another way of writing, the second a narrower type that is written as before.
    """
    found: dict[tuple[str, str, str], Finding] = {}
    for before, after in zip(old.schemas(), new.schemas(), strict=False):
        one_by_one = [
            *(_lost(old, before, after) if mode is not Mode.BACKWARD else ()),
            *(_unread(old, before, after, Mode.BACKWARD) if mode is not Mode.FORWARD else ()),
            *(_unread(old, before, after, Mode.FORWARD) if mode is not Mode.BACKWARD else ()),
        ]
        for finding in one_by_one:
            found.setdefault((finding.code, finding.field, finding.why), finding)
    gone = {finding.field for finding in found.values() if finding.code == "field"}
    yield from (one for one in found.values() if one.code == "field" or one.why == _REPLAYED or one.field not in gone)


def _unread(event: Published, before: Node, after: Node, mode: Mode) -> Iterator[Finding]:
    backward = mode is Mode.BACKWARD
    writer, reader = (before, after) if backward else (after, before)
    names = {"writer": "the old schema", "reader": "the new schema"}
    if not backward:
        names = {"writer": "the new schema", "reader": "the old schema"}
    for one in differences(writer, reader):
        yield Finding(
            event.name,
            one.code,
            "new",
            one.reader if backward else one.writer,
            one.text.format(**names),
            _REPLAYED if backward else _DEPLOYED,
            _REMEDIES.get((mode, one.code), f"take the change back, or {_BUMP}"),
            one.field,
        )


def _lost(event: Published, before: Node, after: Node) -> Iterator[Finding]:
    """Fields that are gone. One that may be left out and was marked as deprecated may go."""
    kept = dict(fields_of(after))
    gone = {field: place for field, place in fields_of(before) if field not in kept}
    for field, place in gone.items():
        if field.rpartition("/")[0] not in gone and not place.may_go:
            yield Finding(
                event.name,
                "field",
                "old",
                place.pointer,
                "the field is gone, or has another name",
                _DEPLOYED
                if place.required
                else "consumers that use it find nothing, or their default, and do not notice",
                f"keep it, or {_BUMP}. A field with a default may go once it has been deprecated "
                "(Field(deprecated=True)) in a version that is deployed everywhere",
                field,
            )


def _accepted(finding: Finding) -> Finding:
    return replace(finding, breaks=False)
