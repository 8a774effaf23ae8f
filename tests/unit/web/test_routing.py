"""Which endpoint serves a path."""

from __future__ import annotations

import pytest

from microkit.errors import DefinitionError
from microkit.web.routing import RouteTable


def table(*routes: tuple[str, str]) -> RouteTable[str]:
    made: RouteTable[str] = RouteTable()
    for method, path in routes:
        made.add(method, path, f"{method} {path}")
    return made


def found(routes: RouteTable[str], path: str, method: str = "GET") -> str | None:
    methods, _ = routes.find(path)
    return None if methods is None else methods.by_method.get(method)


def test_what_is_written_out_comes_before_a_parameter_whatever_the_order() -> None:
    routes = table(
        ("GET", "/bills/{id}"), ("GET", "/bills/latest"), ("GET", "/bills/{id}/{part}"), ("GET", "/bills/{id}/pdf")
    )
    assert found(routes, "/bills/latest") == "GET /bills/latest"
    assert found(routes, "/bills/7") == "GET /bills/{id}"
    assert found(routes, "/bills/7/pdf") == "GET /bills/{id}/pdf"
    assert found(routes, "/bills/7/png") == "GET /bills/{id}/{part}"


def test_the_rest_of_a_path_comes_last() -> None:
    routes = table(("GET", "/files/{rest:path}"), ("GET", "/files/{name}"), ("GET", "/{page}"))
    assert found(routes, "/files/a") == "GET /files/{name}"
    assert found(routes, "/files/a/b") == "GET /files/{rest:path}"
    assert found(routes, "/about") == "GET /{page}"
    assert routes.find("/files/a/b")[1] == {"rest": "a/b"}


def test_parameters_of_one_shape_share_their_methods_whatever_they_are_called() -> None:
    routes = table(("GET", "/bills/{bill_id}"), ("DELETE", "/bills/{bill_id}"))
    methods, _ = routes.find("/bills/7")
    assert methods is not None
    assert methods.allowed == "DELETE, GET, HEAD, OPTIONS"


def test_a_parameter_takes_one_segment_and_not_an_empty_one() -> None:
    routes = table(("GET", "/bills/{id}"))
    for path in ("/bills", "/bills/", "/bills/1/2", "/billsx/1", "*", "", "/"):
        assert found(routes, path) is None


def test_paths_are_taken_as_text_and_not_as_patterns() -> None:
    routes = table(("GET", "/a.b/{id}"), ("GET", "/a+b"))
    assert found(routes, "/axb/1") is None
    assert found(routes, "/a.b/1") == "GET /a.b/{id}"
    assert found(routes, "/a+b") == "GET /a+b"


def test_the_same_route_twice_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"GET /bills/\{id\} is there twice"):
        table(("GET", "/bills/{id}"), ("GET", "/bills/{id}"))
    with pytest.raises(DefinitionError, match="id"):
        table(("GET", "/bills/{id}/{id}"))
    with pytest.raises(DefinitionError, match="nonsense"):
        table(("GET", "/bills/{id:nonsense}"))
