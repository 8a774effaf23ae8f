"""Which changes of events are refused, in which direction, and what is said of them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, Field, PlainSerializer, create_model

from microkit import Event, Service, upcast
from microkit.asyncapi import document
from microkit.compatibility import Finding, Mode, check
from microkit.errors import ConfigurationError


def contracts(*events: type[Event]) -> dict[str, Any]:
    service = Service("shop")
    service.publishes(*events)
    return document([service.declared], title="shop", version="1")


def event(*, name: str = "Sold", topic: str = "shop.sales", key: str = "id", version: int = 1, **fields: Any) -> Any:
    """An event class; a field is its type, or its type and default."""
    chosen = {"id": str, **fields}
    given: Any = {field: kind if isinstance(kind, tuple) else (kind, ...) for field, kind in chosen.items()}
    options = {"topic": topic, "key": key, "version": version}
    return create_model(name, __base__=Event, __cls_kwargs__=options, **given)


def codes(old: Any, new: Any, mode: Mode) -> list[str]:
    return [f"{one.code} {one.field}" for one in check(contracts(old), contracts(new), mode=mode) if one.breaks]


class Line(BaseModel):
    thing: str
    pieces: int


class Priced(Line):
    price: int


class Tree(BaseModel):
    name: str
    branches: list[Tree] = []


class Bush(BaseModel):
    name: str
    branches: list[Bush] = []
    leaves: int


TEXT = PlainSerializer(str, return_type=str)

SAME: list[Any] = []
RANGE = "range /a"
LEAVES = ["required /a/branches/*/leaves", "required /a/leaves"]
CHANGES = {
    # what: (old, new, refused backward, refused forward)
    "nothing": (event(a=int), event(a=int), SAME, SAME),
    "an optional field more": (event(), event(a=(int, 0)), SAME, SAME),
    "a field more that may be null": (event(), event(a=(int | None, None)), SAME, SAME),
    "a required field more": (event(), event(a=int), ["required /a"], SAME),
    "a required field less": (event(a=int), event(), SAME, ["field /a"]),
    "an optional field less": (event(a=(int, 0)), event(), SAME, ["field /a"]),
    "a field that was deprecated less": (event(a=(int, Field(0, deprecated=True))), event(), SAME, SAME),
    "another name": (event(a=int), event(b=int), ["required /b"], ["field /a"]),
    "required now": (event(a=(int, 0)), event(a=int), ["required /a"], SAME),
    "optional now": (event(a=int), event(a=(int, 0)), SAME, ["required /a"]),
    "null now": (event(a=int), event(a=int | None), SAME, ["type /a"]),
    "not null any more": (event(a=int | None), event(a=int), ["type /a"], SAME),
    "another type": (event(a=int), event(a=str), ["type /a"], ["type /a"]),
    "a wider type": (event(a=int), event(a=float), SAME, ["type /a"]),
    "a narrower type": (event(a=float), event(a=int), ["type /a"], SAME),
    "another format": (event(a=str), event(a=AwareDatetime), ["format /a"], SAME),
    "a value more": (event(a=Literal["x"]), event(a=Literal["x", "y"]), SAME, ["enum /a"]),
    "a value less": (event(a=Literal["x", "y"]), event(a=Literal["x"]), ["enum /a"], SAME),
    "any text": (event(a=Literal["x"]), event(a=str), SAME, ["enum /a"]),
    "shorter": (event(a=str), event(a=Annotated[str, Field(max_length=5)]), [RANGE], SAME),
    "longer": (
        event(a=Annotated[str, Field(max_length=5)]),
        event(a=Annotated[str, Field(max_length=6)]),
        SAME,
        [RANGE],
    ),
    "another pattern": (
        event(a=Annotated[str, Field(pattern="^a")]),
        event(a=Annotated[str, Field(pattern="^b")]),
        ["pattern /a"],
        ["pattern /a"],
    ),
    "a higher minimum": (event(a=Annotated[int, Field(ge=1)]), event(a=Annotated[int, Field(gt=1)]), [RANGE], SAME),
    "fewer items": (event(a=list[int]), event(a=Annotated[list[int], Field(max_length=2)]), [RANGE], SAME),
    "other items": (event(a=list[int]), event(a=list[str]), ["type /a/*"], ["type /a/*"]),
    "other values of a mapping": (event(a=dict[str, int]), event(a=dict[str, int | None]), SAME, ["type /a/*"]),
    "another place in a tuple": (event(a=tuple[int, str]), event(a=tuple[int, int]), ["type /a/1"], ["type /a/1"]),
    "within a model": (event(a=list[Line]), event(a=list[Priced]), ["required /a/*/price"], SAME),
    "within a recursive model": (event(a=Tree), event(a=Bush), LEAVES, SAME),
    "one more kind in a union": (event(a=int | str), event(a=int | str | list[int]), SAME, ["alternatives /a"]),
    "written in another way": (event(a=int), event(a=Annotated[int, PlainSerializer(str, return_type=str)]),
                               ["type /a"], ["type /a"]),
    "read more narrowly than it is written": (
        event(a=Annotated[Decimal, Field(gt=0), TEXT]),
        event(a=Annotated[Decimal, Field(gt=1), TEXT]),
        [RANGE],
        SAME,
    ),
    "another description": (event(a=int), event(a=Annotated[int, Field(description="of things")]), SAME, SAME),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_in_the_direction_in_which_it_breaks(what: str) -> None:
    old, new, backward, forward = CHANGES[what]

    assert sorted(codes(old, new, Mode.BACKWARD)) == backward
    assert sorted(codes(old, new, Mode.FORWARD)) == forward
    assert sorted(codes(old, new, Mode.FULL)) == sorted([*backward, *forward])


def only(found: list[Finding]) -> Finding:
    (one,) = found
    return one


def test_a_finding_says_where_what_why_and_what_to_do() -> None:
    found = only(check(contracts(event()), contracts(event(a=int))))

    assert (found.event, found.field) == ("shop.sales.Sold", "/a")
    assert (found.document, found.pointer) == ("new", "/components/schemas/Sold/required")
    assert found.what == "the new schema requires it, the old schema does not have it"
    assert found.why.startswith("messages that were published before are read with the new schema")
    assert found.remedy.startswith("give the field a default, or raise version=")


def test_an_event_that_is_gone_is_refused_until_that_is_accepted() -> None:
    other = event(name="Other")
    old, new = contracts(event(), other), contracts(other)

    assert only(check(old, new)).code == "removed"
    assert only(check(old, new)).breaks
    assert not only(check(old, new, accept=["shop.sales.Sold"])).breaks


def test_an_event_more_on_a_topic_with_listeners_is_warned_of() -> None:
    found = only(check(contracts(event()), contracts(event(), event(name="Other"))))

    assert (found.code, found.breaks) == ("added", False)
    assert found.remedy.startswith("deploy the services that listen to shop.sales")
    assert check(contracts(event()), contracts(event(), event(name="Other", topic="shop.others"))) == []


def test_another_topic_and_another_key_are_refused() -> None:
    assert codes(event(), event(topic="shop.elsewhere"), Mode.FULL) == ["topic "]
    assert codes(event(a=str), event(a=str, key="a"), Mode.BACKWARD) == ["key "]


class Sold(Event, topic="shop.sales", key="id", version=2):
    id: str
    pieces: int

    @upcast(from_version=1)
    @staticmethod
    def one_piece(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "pieces": 1}


def test_a_higher_version_with_an_upcaster_is_allowed_and_warned_of() -> None:
    found = only(check(contracts(event(a=int)), contracts(Sold)))

    assert (found.code, found.breaks) == ("version", False)
    assert found.what == "the version rose from 1 to 2"
    assert "newer-version" in found.why


def test_a_higher_version_without_an_upcaster_is_refused() -> None:
    found = [one for one in check(contracts(event()), contracts(event(version=2))) if one.breaks]

    assert only(found).remedy == "write one: @upcast(from_version=1)"
    assert codes(event(), event(version=2), Mode.FORWARD) == []


def test_an_upcaster_stays_and_a_version_never_falls() -> None:
    assert codes(Sold, event(pieces=int, version=2), Mode.FULL) == ["upcaster "]
    assert codes(Sold, event(pieces=int, version=3), Mode.FULL) == ["upcaster "]
    assert codes(Sold, event(), Mode.FULL) == ["version "]


def test_documents_that_others_wrote_are_compared_too() -> None:
    def plain(payload: dict[str, Any]) -> dict[str, Any]:
        return {
            "asyncapi": "3.0.0",
            "info": {"title": "x", "version": "1"},
            "channels": {"sales": {"messages": {"sold": {"payload": payload}}}},
        }

    old = plain({"type": "object", "properties": {"a": {"type": "string"}}})
    new = plain({"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}})

    found = only(check(old, new))
    assert (found.event, found.pointer) == ("sold", "/channels/sales/messages/sold/payload/properties/a/maxLength")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (None, "the new document is no AsyncAPI 3 document"),
        ({"asyncapi": "2.6.0"}, "the new document is no AsyncAPI 3 document"),
        ({"asyncapi": "3.0.0", "channels": []}, None),
        ({"asyncapi": "3.0.0", "channels": {"a": {"messages": 5}}}, "the new document is a broken AsyncAPI document"),
        ({"asyncapi": "3.0.0", "channels": {"a": {"$ref": "#/none"}}}, "there is nothing at the reference '#/none'"),
        ({"asyncapi": "3.0.0", "channels": {"a": {"$ref": "b.json"}}}, "the reference 'b.json' leads out"),
        ({"asyncapi": "3.0.0", "channels": {"a": {"$ref": "#/channels/a"}}}, "the reference '#/channels/a' leads"),
    ],
)
def test_a_document_that_is_none_is_told(document: Any, told: str | None) -> None:
    if told is None:
        assert check(document, document) == []
        return
    with pytest.raises(ConfigurationError, match=told):
        check(contracts(event()), document)
