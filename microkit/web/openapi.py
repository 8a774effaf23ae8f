"""The OpenAPI 3.1 document of a service, from the same declarations that serve it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter

from microkit.contract import ANYONE, SIGNED_IN, Parameter, Place, services_only
from microkit.errors import Forbidden, Problem, Unauthorized, ValidationFailed
from microkit.injection import bare
from microkit.web.idempotency import IdempotencyKeyReused, RequestInFlight
from microkit.web.route import Route, Surface

Document = dict[str, Any]
Key = tuple[str, str]

_REFERENCE: Final = "#/components/schemas/{model}"
_CONVERTOR: Final = re.compile(r"{(\w+):\w+}")
_MEDIA_TYPE: Final = "application/problem+json"
_IDEMPOTENCY_KEY: Final[Document] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Sent again with the same key, the request has its effect once and gets the same reply.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_PROBLEM: Final[Document] = {
    "type": "object",
    "title": "Problem document",
    "description": "A problem document (RFC 9457). Each kind of problem may have members of its own.",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "Stable: programs decide by it."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For the person who reads it."},
        "instance": {"type": "string", "format": "uri-reference", "description": "The path of the request."},
        "trace_id": {"type": "string", "description": "What to search for in traces and logs."},
        "errors": {
            "type": "array",
            "description": "What does not fit, where the request did not fit its schema.",
            "items": {
                "type": "object",
                "required": ["in", "pointer", "detail"],
                "properties": {
                    "in": {"type": "string", "enum": ["body", "path", "query", "header"]},
                    "pointer": {"type": "string", "format": "json-pointer"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def document(surface: Surface, routes: Sequence[Route]) -> Document:
    """The whole document."""
    schemas = _Schemas(routes)
    paths: Document = {}
    for route in routes:
        path = _CONVERTOR.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _Described(route, schemas).operation()
    groups = list(dict.fromkeys(route.group for route in routes if route.group))
    closed = any(ANYONE not in route.allow for route in routes)
    components: Document = {"schemas": {"ProblemDocument": _PROBLEM}}
    if closed:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    found: Document = {
        "openapi": "3.1.0",
        "info": {"title": surface.title or surface.service, "version": surface.version or "0"},
        "paths": paths,
        "components": components,
    }
    if groups:
        found["tags"] = [{"name": group} for group in groups]
    components["schemas"].update(schemas.referenced_by(paths))
    return found


class _Schemas:
    """The schemas of all parameters and results, and the definitions that they share."""

    def __init__(self, routes: Sequence[Route]) -> None:
        inputs: list[tuple[Key, Literal["validation", "serialization"], TypeAdapter[Any]]] = []
        for route in routes:
            inputs += [
                ((_id(route), parameter.name), "validation", TypeAdapter(parameter.annotation))
                for parameter in route.parameters
            ]
            if not (route.empty or route.streams):
                inputs.append(((_id(route), "return"), "serialization", TypeAdapter(route.result)))
        found, shared = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)
        self._found = {key: schema for (key, _), schema in found.items()}
        self._definitions: Document = shared.get("$defs", {})

    def of(self, route: Route, name: str) -> Document:
        """The schema of a parameter, or of the result, whose name is ``return``."""
        return self._found[_id(route), name]

    def fields(self, route: Route, parameter: Parameter) -> Iterator[tuple[str, bool, Document]]:
        """The fields of a model in the query: name, whether it is required, schema."""
        schema = self.of(route, parameter.name)
        schema = self._definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        for name, field in schema["properties"].items():
            yield name, name in schema.get("required", ()), field

    def referenced_by(self, part: Any) -> Document:
        """The definitions that a part of the document needs."""
        needed: Document = {}
        waiting = _references(part)
        while waiting:
            name = waiting.pop()
            if name in self._definitions and name not in needed:
                needed[name] = self._definitions[name]
                waiting |= _references(needed[name])
        return dict(sorted(needed.items()))


def _references(part: Any) -> set[str]:
    if isinstance(part, dict):
        own = part.get("$ref")
        found = {own.rpartition("/")[2]} if isinstance(own, str) else set()
        return found.union(*map(_references, part.values()))
    return set().union(*map(_references, part)) if isinstance(part, (list, tuple)) else set()


def _id(route: Route) -> str:
    return f"{route.method} {route.path}"


class _Described:
    """One operation of the document."""

    def __init__(self, route: Route, schemas: _Schemas) -> None:
        self._route = route
        self._schemas = schemas

    def operation(self) -> Document:
        route = self._route
        summary, _, rest = route.description.partition("\n")
        found: Document = {"operationId": route.name}
        if route.group:
            found["tags"] = [route.group]
        if summary:
            found["summary"] = summary.rstrip(".")
        if description := "\n\n".join(text for text in (rest.strip(), _who(route.allow)) if text):
            found["description"] = description
        if parameters := self._parameters():
            found["parameters"] = parameters
        if route.body is not None:
            found["requestBody"] = self._body(route.body)
        found["responses"] = self._responses()
        if ANYONE not in route.allow:
            # One of these will do. OpenAPI 3.1 lets a scheme that is no OAuth name the roles that it takes.
            found["security"] = [{"bearer": [] if role == SIGNED_IN else [role]} for role in route.allow]
        return found

    def _parameters(self) -> list[Document]:
        found: list[Document] = []
        for parameter in self._route.parameters:
            kind = bare(parameter.annotation)
            if parameter.place is Place.QUERY and isinstance(kind, type) and issubclass(kind, BaseModel):
                for name, required, schema in self._schemas.fields(self._route, parameter):
                    found.append(_parameter(name, Place.QUERY, schema, required=required))
            elif parameter.place is not Place.BODY:
                schema = dict(self._schemas.of(self._route, parameter.name))
                if not parameter.required and parameter.default is not None:
                    schema["default"] = TypeAdapter(parameter.annotation).dump_python(parameter.default, mode="json")
                found.append(_parameter(parameter.wire_name, parameter.place, schema, required=parameter.required))
        return [*found, _IDEMPOTENCY_KEY] if self._route.remembered else found

    def _body(self, parameter: Parameter) -> Document:
        if bare(parameter.annotation) is bytes:
            return {"required": parameter.required, "content": {"*/*": {"schema": {}}}}
        schema = self._schemas.of(self._route, parameter.name)
        return {"required": parameter.required, "content": {"application/json": {"schema": schema}}}

    def _responses(self) -> Document:
        route = self._route
        success: Document = {"description": HTTPStatus(route.status).phrase}
        if not (route.empty or route.streams):
            success["content"] = {"application/json": {"schema": self._schemas.of(route, "return")}}
        found: Document = {str(route.status): success}
        by_status: dict[int, list[type[Problem]]] = {}
        for problem in self._problems():
            by_status.setdefault(problem.status, []).append(problem)
        for status, problems in sorted(by_status.items()):
            found[str(status)] = _problem_response(problems)
        found["default"] = {
            "description": "Any other problem",
            "content": {_MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="ProblemDocument")}}},
        }
        return found

    def _problems(self) -> list[type[Problem]]:
        route = self._route
        found = list(route.raises)
        if ANYONE not in route.allow:
            found += [Unauthorized] if route.allow == (SIGNED_IN,) else [Unauthorized, Forbidden]
        if route.parameters:
            found.append(ValidationFailed)
        if route.remembered:
            found += [RequestInFlight, IdempotencyKeyReused]
        return list(dict.fromkeys(found))


def _parameter(name: str, place: Place, schema: Mapping[str, Any], *, required: bool) -> Document:
    rest = dict(schema)
    description = rest.pop("description", None)
    found: Document = {"name": name, "in": place.value, "required": required}
    if description:
        found["description"] = description
    return {**found, "schema": rest}


def _problem_response(problems: Sequence[type[Problem]]) -> Document:
    examples = {
        problem.type.rpartition(":")[2]: {
            "value": {"type": problem.type, "title": problem.title, "status": problem.status}
        }
        for problem in problems
    }
    schema = {"$ref": _REFERENCE.format(model="ProblemDocument")}
    return {
        "description": "; ".join(dict.fromkeys(problem.title for problem in problems)),
        "content": {_MEDIA_TYPE: {"schema": schema, "examples": examples}},
    }


def _who(allow: tuple[str, ...]) -> str:
    if ANYONE in allow:
        return "Anyone may call this."
    if SIGNED_IN in allow:
        return "For any valid access token."
    if services_only(allow):
        return "For other services only."
    return f"For the role {' or '.join(f'`{role}`' for role in allow)}."
