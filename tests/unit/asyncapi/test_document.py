"""The AsyncAPI document of services: the official schema takes it, and it says what the services do."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from microkit import ANYONE, Contract, Event, Service, Transaction, post, upcast
from microkit.asyncapi import document, server
from microkit.asyncapi.schemas import EventSchemas
from microkit.compatibility import check
from microkit.errors import DefinitionError
from reference.billpay.system import system as billpay


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class Cash(BaseModel):
    kind: Literal["cash"]
    coins: tuple[int, str]
    change: Cash | None = None


class Sold(Event, topic="shop.sales", key="sale_id", version=2):
    """Something was sold.

    Whoever keeps books listens.
    """

    sale_id: str
    price: Decimal
    paid_by: Annotated[Card | Cash, Field(discriminator="kind")]
    prefixItems: dict[str, Colour]  # noqa: N815  a field that is called as a keyword of JSON Schema
    colour: Annotated[Colour, Field(description="Of the thing")] = Colour.RED

    @upcast(from_version=1)
    @staticmethod
    def paid(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "paid_by": {"kind": "card", "number": ""}}


class Counted(Event, topic="shop.stock", key="thing"):
    thing: str


class Shop(Contract, service="shop", prefix="/sales", allow=ANYONE):
    @post("", status=201)
    async def sell(self) -> None: ...


def shop() -> Service:
    service = Service("shop", title="The shop", version="2.1.0")

    @service.handles(Shop.sell)
    async def sell(tx: Transaction) -> None: ...

    @service.on(Counted)
    async def reorder(event: Counted) -> None: ...

    return service


def books() -> Service:
    service = Service("books")

    @service.on(Sold, group="books")
    async def book(event: Sold, tx: Transaction) -> None: ...

    @service.on(Counted, group="books")
    async def take_stock(event: Counted, tx: Transaction) -> None: ...

    return service


def written(*services: Service, **options: Any) -> dict[str, Any]:
    found = document([service.declared for service in services], title="Shops", version="1", **options)
    assert json.loads(json.dumps(found)) == found
    return found


@cache
def official() -> jsonschema.Draft7Validator:
    schema = json.loads((Path(__file__).parent / "official" / "3.0.0.json").read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(schema)


def troubles(found: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in official().iter_errors(found)]


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [one for value in part.values() for one in references(value)]
    return [one for value in part for one in references(value)] if isinstance(part, list) else []


DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "billpay": lambda: written(*billpay.services),
    **{service.name: partial(written, service) for service in billpay.services},
    "shops": lambda: written(shop(), books(), servers={"bus": server("kafka://me:secret@kafka:9092")}),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_official_schema_takes_the_document(name: str) -> None:
    assert troubles(DOCUMENTS[name]()) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_reference_leads_somewhere(name: str) -> None:
    found = DOCUMENTS[name]()

    for reference in references(found):
        here: Any = found
        for part in reference.removeprefix("#/").split("/"):
            here = here[part]
        assert here


def test_the_official_schema_refuses_what_is_wrong() -> None:
    found = written(shop())
    found["operations"]["shop.send.shop.sales"]["action"] = "emit"
    found["components"]["schemas"]["Sold"]["properties"]["price"]["type"] = "money"

    assert len(troubles(found)) >= 2


def test_who_publishes_and_who_listens() -> None:
    operations = written(shop(), books())["operations"]

    assert {
        name: (one["action"], one["channel"]["$ref"], [message["$ref"] for message in one["messages"]])
        for name, one in operations.items()
    } == {
        "shop.send.shop.sales": ("send", "#/channels/shop.sales", ["#/channels/shop.sales/messages/Sold"]),
        "shop.send.shop.stock": ("send", "#/channels/shop.stock", ["#/channels/shop.stock/messages/Counted"]),
        "shop.reorder.receive": ("receive", "#/channels/shop.stock", ["#/channels/shop.stock/messages/Counted"]),
        "books.receive.shop.sales": ("receive", "#/channels/shop.sales", ["#/channels/shop.sales/messages/Sold"]),
        "books.receive.shop.stock": ("receive", "#/channels/shop.stock", ["#/channels/shop.stock/messages/Counted"]),
    }
    assert operations["shop.reorder.receive"]["bindings"]["kafka"]["groupId"]["enum"] == ["shop.reorder"]


def test_an_event_is_described_with_its_envelope() -> None:
    found = written(shop())
    message = found["components"]["messages"]["shop.sales.Sold"]

    assert (message["title"], message["summary"]) == ("Sold", "Something was sold.")
    assert message["description"] == "Whoever keeps books listens."
    assert message["x-microkit"] == {
        "version": 2,
        "key": "sale_id",
        "upcasts": [1],
        "reads": {"$ref": "#/components/schemas/Sold.read"},
    }
    own = message["headers"]["allOf"][1]["properties"]
    assert own == {"ce_type": {"const": "shop.sales.Sold"}, "ce_schemaversion": {"const": "2"}}


def test_a_message_that_is_published_fits_its_document() -> None:
    found = written(shop())
    message = Sold(
        sale_id="1",
        price=Decimal("9.90"),
        paid_by=Cash(kind="cash", coins=(2, "EUR"), change=Cash(kind="cash", coins=(1, "EUR"))),
        prefixItems={"lid": Colour.BLUE},
    ).to_message("shop")
    told = found["components"]["messages"]["shop.sales.Sold"]
    whole = {"components": found["components"]}

    jsonschema.Draft7Validator({**told["payload"], **whole}).validate(json.loads(message.value))
    jsonschema.Draft7Validator({**told["headers"], **whole}).validate(dict(message.headers))
    broken = {**json.loads(message.value), "paid_by": {"kind": "cash", "coins": ["EUR", 2]}}
    assert not jsonschema.Draft7Validator({**told["payload"], **whole}).is_valid(broken)


def test_schemas_are_in_the_form_of_draft_7() -> None:
    schemas = EventSchemas([Sold]).components

    assert schemas["Cash"]["properties"]["coins"]["items"] == [{"type": "integer"}, {"type": "string"}]
    assert schemas["Sold"]["properties"]["colour"]["allOf"] == [{"$ref": "#/components/schemas/Colour"}]
    assert "discriminator" not in schemas["Sold"]["properties"]["paid_by"]
    assert schemas["Sold"]["properties"]["prefixItems"]["type"] == "object"
    assert [len(schemas[name]["properties"]["price"].get("anyOf", "")) for name in ("Sold", "Sold.read")] == [0, 2]


def test_an_event_elsewhere_is_the_services_where_it_says_so() -> None:
    service = Service("stall")
    service.publishes(Sold)

    assert list(written(service)["operations"]) == ["stall.send.shop.sales"]
    with pytest.raises(DefinitionError, match=r"stall: service\.publishes"):
        service.publishes(Card)  # type: ignore[arg-type]  # that is the mistake


def test_a_service_without_events_has_a_document_too() -> None:
    found = written(Service("silent"))

    assert troubles(found) == []
    assert (found["channels"], found["operations"]) == ({}, {})


def test_a_consumers_own_copy_of_an_event_gives_way_to_the_owners() -> None:
    class Listening:
        class Sold(Event, topic="shop.sales", key="sale_id", version=1):
            sale_id: str

    listener = Service("listener")

    @listener.on(Listening.Sold)
    async def see(event: Listening.Sold) -> None: ...

    assert written(listener, shop())["components"]["messages"]["shop.sales.Sold"]["x-microkit"]["version"] == 2


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_compatible_with_itself(name: str) -> None:
    assert check(DOCUMENTS[name](), DOCUMENTS[name]()) == []


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("memory://", None),
        ("redis://redis:6379/0", {"host": "redis:6379", "protocol": "redis"}),
        (
            "rediss://:pw@redis:6379",
            {"host": "redis:6379", "protocol": "rediss", "security": [{"type": "userPassword"}]},
        ),
        ("kafka://a:9092,b:9092", {"host": "a:9092,b:9092", "protocol": "kafka"}),
        ("kafka+ssl://a:9092", {"host": "a:9092", "protocol": "kafka-secure"}),
        ("kafka://a:9092?security_protocol=ssl", {"host": "a:9092", "protocol": "kafka-secure"}),
        ("kafka://u:pw@a:9092", {"host": "a:9092", "protocol": "kafka-secure", "security": [{"type": "plain"}]}),
        (
            "kafka://u:pw@a:9092?security.protocol=SASL_PLAINTEXT&sasl.mechanism=SCRAM-SHA-512",
            {"host": "a:9092", "protocol": "kafka", "security": [{"type": "scramSha512"}]},
        ),
    ],
)
def test_a_broker_is_named_without_its_secrets(url: str, found: dict[str, Any] | None) -> None:
    assert server(url) == found
    if found is not None:
        assert troubles(written(shop(), servers={"bus": found})) == []
