"""One OpenAPI document out of several."""

from __future__ import annotations

from typing import Any

from microkit.gateway import Route
from microkit.gateway.document import merge

BILLS = Route("/api/bills", service="billing", strip_prefix="/api")
USERS = Route("/api/users", service="user", strip_prefix="/api", methods=("GET",))


def operation(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"operationId": "read", "responses": {"200": {"content": content}}}


def document(paths: dict[str, Any], **schemas: Any) -> dict[str, Any]:
    return {"openapi": "3.1.0", "paths": paths, "components": {"schemas": schemas}}


def reference(merged: dict[str, Any], path: str) -> str:
    found: str = merged["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    return found


def test_operations_appear_under_their_public_paths_with_their_services_tag() -> None:
    merged = merge("Shop", [BILLS], {"billing": document({"/bills/{id}": {"get": operation("Bill")}}, Bill={})})
    assert list(merged["paths"]) == ["/api/bills/{id}"]
    assert merged["paths"]["/api/bills/{id}"]["get"]["tags"] == ["billing"]
    assert merged["paths"]["/api/bills/{id}"]["get"]["operationId"] == "billing.read"
    assert merged["info"]["title"] == "Shop"


def test_what_no_route_lets_through_is_left_out() -> None:
    paths = {
        "/users/me": {"get": operation("User"), "patch": operation("User")},
        "/internal": {"get": operation("User")},
    }
    merged = merge("Shop", [USERS], {"user": document(paths, User={})})
    assert list(merged["paths"]) == ["/api/users/me"]
    assert list(merged["paths"]["/api/users/me"]) == ["get"]


def test_what_only_services_may_call_is_left_out() -> None:
    internal = {**operation("Bill"), "security": [{"bearer": ["service"]}]}
    shared = {**operation("Bill"), "security": [{"bearer": ["service"]}, {"bearer": ["member"]}]}
    signed_in = {**operation("Bill"), "security": [{"bearer": []}]}
    paths = {"/bills/1": {"post": internal, "parameters": []}, "/bills/2": {"post": shared, "get": signed_in}}
    merged = merge("Shop", [BILLS], {"billing": document(paths, Bill={})})
    assert {path: list(item) for path, item in merged["paths"].items()} == {"/api/bills/2": ["post", "get"]}


def test_components_of_one_name_and_different_content_stay_apart() -> None:
    billing = document({"/bills": {"get": operation("Page")}}, Page={"title": "PageOfBills"}, Same={"type": "string"})
    user = document({"/users": {"get": operation("Page")}}, Page={"title": "PageOfUsers"}, Same={"type": "string"})
    merged = merge("Shop", [BILLS, USERS], {"billing": billing, "user": user})
    assert reference(merged, "/api/bills") == "#/components/schemas/Page"
    assert reference(merged, "/api/users") == "#/components/schemas/user.Page"
    assert merged["components"]["schemas"] == {
        "Page": {"title": "PageOfBills"},
        "user.Page": {"title": "PageOfUsers"},
        "Same": {"type": "string"},
    }


def test_what_refers_to_a_renamed_component_is_renamed_with_it() -> None:
    outer = {"properties": {"inner": {"$ref": "#/components/schemas/Inner"}}}
    billing = document({"/bills": {"get": operation("Outer")}}, Outer=outer, Inner={"type": "string"})
    user = document({"/users": {"get": operation("Outer")}}, Outer=outer, Inner={"type": "integer"})
    merged = merge("Shop", [BILLS, USERS], {"billing": billing, "user": user})
    schemas = merged["components"]["schemas"]
    assert reference(merged, "/api/users") == "#/components/schemas/user.Outer"
    assert schemas["user.Outer"]["properties"]["inner"]["$ref"] == "#/components/schemas/user.Inner"
    assert schemas["Outer"]["properties"]["inner"]["$ref"] == "#/components/schemas/Inner"


def test_a_service_that_does_not_answer_is_named() -> None:
    assert merge("Shop", [BILLS], {}, ["billing"])["x-unavailable"] == ["billing"]
