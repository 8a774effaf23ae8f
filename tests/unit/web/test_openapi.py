"""The OpenAPI document and the page that shows it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from decimal import Decimal
from html.parser import HTMLParser
from typing import Annotated, Any
from uuid import UUID

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, Field, SecretStr
from starlette.responses import Response

from microkit.contract import ANYONE, SERVICE, SIGNED_IN, Contract, Header, delete, get, patch, post
from microkit.db import Transaction
from microkit.errors import Conflict, NotFound, Problem
from microkit.page import Page, PageRequest
from microkit.web.docs import page
from microkit.web.openapi import document
from microkit.web.route import InlineRoute, Route, Surface
from reference.billpay.contracts.billing import Billing
from reference.billpay.contracts.payment import Payments, Wallets
from reference.billpay.contracts.user import Sessions, Users


class Lost(Problem, status=404, title="The parcel is lost"): ...


class Box(BaseModel):
    label: Annotated[str, Field(min_length=1, description="What stands on it, `in capitals`")]
    weight: Decimal
    inner: list[Box] = []


class NewBox(Box):
    pin: SecretStr | None = None


class Boxes(Contract, service="boxes", prefix="/boxes", allow=("packer", "boss")):
    @post("", status=201, raises=(Conflict,))
    async def create(self, body: Box) -> Box:
        """Pack a box.

        Nothing fragile, please.
        """
        ...

    @get("")
    async def list(
        self, page: PageRequest, since: datetime | None = None, tags: list[str] | None = None
    ) -> Page[Box]: ...

    @get("/{box_id}", allow=SIGNED_IN, raises=(NotFound, Lost))
    async def read(self, box_id: UUID, etag: Annotated[str | None, Header("If-Match")] = None) -> Box: ...

    @delete("/{box_id}", status=204, allow=SERVICE)
    async def burn(self, box_id: UUID) -> None: ...

    @patch("/{box_id}", allow=ANYONE)
    async def seal(self, box_id: UUID, body: NewBox) -> Box: ...


async def with_transaction(tx: Transaction) -> None: ...


async def upload(name: str, body: bytes) -> Response: ...


async def search(rest: str, most: int = 5) -> dict[str, int]: ...


def routes() -> list[Route]:
    found = [Route.of_operation(operation, with_transaction) for operation in Boxes.operations()]
    found.append(Route.of_inline(InlineRoute("POST", "/files/{name}", upload, ANYONE), ()))
    found.append(Route.of_inline(InlineRoute("GET", "/search/{rest:path}", search, ANYONE), ()))
    return found


@pytest.fixture
def described() -> dict[str, Any]:
    return document(Surface("boxes", "Boxes & <parcels>", "2.1"), routes())


def test_the_document_is_valid_openapi_3_1(described: dict[str, Any]) -> None:
    validate(json.loads(json.dumps(described)))
    assert described["openapi"].startswith("3.1")


def test_the_contracts_of_billpay_make_a_valid_document() -> None:
    contracts: list[type[Contract]] = [Billing, Users, Sessions, Payments, Wallets]
    found = [Route.of_operation(one, with_transaction) for contract in contracts for one in contract.operations()]
    validate(json.loads(json.dumps(document(Surface("billpay"), found))))


def test_an_operation_is_described_whole(described: dict[str, Any]) -> None:
    create = described["paths"]["/boxes"]["post"]
    assert create["operationId"] == "Boxes.create"
    assert create["summary"] == "Pack a box"
    assert create["description"] == "Nothing fragile, please.\n\nFor the role `packer` or `boss`."
    assert create["security"] == [{"bearer": ["packer"]}, {"bearer": ["boss"]}]
    body, answer = create["requestBody"], create["responses"]["201"]
    # A decimal is taken as a number or a text, and given as a text: two schemas.
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Box-Input"}
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Box-Output"}
    assert set(create["responses"]) == {"201", "401", "403", "409", "422", "default"}
    conflict = create["responses"]["409"]["content"]["application/problem+json"]
    assert set(conflict["examples"]) == {"conflict", "request-in-flight"}


def test_problems_of_one_status_stand_together(described: dict[str, Any]) -> None:
    missing = described["paths"]["/boxes/{box_id}"]["get"]["responses"]["404"]
    assert missing["description"] == "Not Found; The parcel is lost"
    assert missing["content"]["application/problem+json"]["examples"]["lost"]["value"] == {
        "type": "urn:problem:lost",
        "title": "The parcel is lost",
        "status": 404,
    }


def test_parameters_are_named_as_on_the_wire(described: dict[str, Any]) -> None:
    listed = {one["name"]: one for one in described["paths"]["/boxes"]["get"]["parameters"]}
    assert set(listed) == {"limit", "cursor", "since", "tags"}
    assert listed["limit"]["schema"]["maximum"] == 100
    assert listed["limit"]["required"] is False
    read = {one["name"]: one["in"] for one in described["paths"]["/boxes/{box_id}"]["get"]["parameters"]}
    assert read == {"box_id": "path", "If-Match": "header"}
    assert "/search/{rest}" in described["paths"]


def test_only_remembered_operations_take_an_idempotency_key(described: dict[str, Any]) -> None:
    def takes_key(path: str, method: str) -> bool:
        parameters = described["paths"][path][method].get("parameters", [])
        return any(one["name"] == "Idempotency-Key" for one in parameters)

    assert takes_key("/boxes", "post")
    assert not takes_key("/boxes", "get")
    assert not takes_key("/boxes/{box_id}", "delete")
    assert not takes_key("/boxes/{box_id}", "patch")  # its body holds a secret
    assert not takes_key("/files/{name}", "post")  # it takes no transaction


def test_who_may_call_is_said(described: dict[str, Any]) -> None:
    paths = described["paths"]["/boxes/{box_id}"]
    assert paths["get"]["description"] == "For any valid access token."
    assert "403" not in paths["get"]["responses"]
    assert paths["delete"]["description"] == "For other services only."
    assert "security" not in paths["patch"]


def test_a_service_that_anyone_may_call_has_no_security_scheme() -> None:
    open_routes = [Route.of_inline(InlineRoute("GET", "/search/{rest}", search, ANYONE), ())]
    assert "securitySchemes" not in document(Surface("open"), open_routes)["components"]


def test_schemas_that_nobody_refers_to_are_left_out(described: dict[str, Any]) -> None:
    assert set(described["components"]["schemas"]) == {
        "ProblemDocument",
        "Box-Input",
        "Box-Output",
        "NewBox",
        "Page_Box_",
    }


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.targets += [text for name, text in attrs if name in {"href", "src", "action", "srcset"} and text]
        if "id" in named:
            assert named["id"] not in self.ids
            self.ids.add(str(named["id"]))
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere(described: dict[str, Any]) -> None:
    found = Links()
    html = page(described)
    found.feed(html)
    assert found.open == []
    for target in found.targets:
        assert target in {"openapi.json", "data:,"} or target.removeprefix("#") in found.ids
    assert "<script" not in html
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_shows_every_operation(described: dict[str, Any]) -> None:
    html = page(described)
    for path, methods in described["paths"].items():
        for method in methods:
            assert re.search(
                rf'class="method {method}">{method.upper()}</span><span class="path">{re.escape(path)}<', html
            )


def test_the_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert(1)</script>"
    hostile = {
        "info": {"title": evil, "version": evil},
        "paths": {
            f"/{evil}": {
                "post": {
                    "tags": [evil],
                    "summary": evil,
                    "description": f"`{evil}`",
                    "parameters": [{"name": evil, "in": evil, "description": evil, "schema": {"type": evil}}],
                    "requestBody": {"content": {"application/json": {"schema": {"$ref": f"#/{evil}"}}}},
                    "responses": {
                        evil: {"description": evil},
                        "200": {"content": {"application/json": {"schema": {"enum": [evil], "pattern": evil}}}},
                        "400": {
                            "content": {"application/problem+json": {"examples": {"a": {"value": {"type": evil}}}}}
                        },
                    },
                }
            }
        },
    }
    assert "<script" not in page(hostile)


def test_the_page_of_an_endless_schema_ends(described: dict[str, Any]) -> None:
    assert "inner[].inner[]" in page(described)
