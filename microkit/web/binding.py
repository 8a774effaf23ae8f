"""A route's parameters bound to its handler: read, validated and handed over, all decided when the service starts."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

from pydantic import BaseModel
from starlette.requests import Request

from microkit import context
from microkit.auth.principal import Principal
from microkit.context import WorkContext
from microkit.contract import Parameter, Place
from microkit.db import Transaction
from microkit.injection import Bound, Getter, bare, bind
from microkit.proxies import Proxies
from microkit.web.body import body_reader
from microkit.web.call import Call
from microkit.web.problems import validation_failed
from microkit.web.route import Route
from microkit.web.target import parse_query
from microkit.web.text import Errors, QueryModel, TextParameter, unknown_names

OFFERED: Final[Mapping[Any, Getter[Call]]] = {
    Transaction: attrgetter("transaction"),
    Principal: attrgetter("principal"),
    Request: attrgetter("request"),
    WorkContext: lambda _: context.current(),
}
"""What handlers may ask for by type, beside the service's resources."""


def _value_of(name: str) -> Getter[Call]:
    return lambda call: call.values[name]


def _getter(thing: object) -> Getter[Call]:
    if isinstance(thing, Proxies):  # offered as ClientAddress: they know whom they see
        return lambda call: thing.caller(call.scope)
    return lambda _: thing


class Binding:
    """``await binding.read(call)`` validates, ``await binding.handler(call)`` calls the handler."""

    def __init__(self, route: Route, resources: Mapping[Any, object], *, depth: int) -> None:
        by_place: dict[Place, list[Parameter]] = {place: [] for place in Place}
        for parameter in route.parameters:
            by_place[parameter.place].append(parameter)
        self.handler: Bound[Call] = bind(
            route.handler,
            by_name={parameter.name: _value_of(parameter.name) for parameter in route.parameters},
            by_type={**{kind: _getter(thing) for kind, thing in resources.items()}, **OFFERED},
        )
        self.wants_request = self.handler.wants(Request)
        self._path = [TextParameter(one) for one in by_place[Place.PATH]]
        self._headers = [(one.wire_name.lower().encode(), TextParameter(one)) for one in by_place[Place.HEADER]]
        self._query, self._models = _query_readers(by_place[Place.QUERY])
        self._body = next((body_reader(one, depth) for one in by_place[Place.BODY]), None)
        self._known = frozenset(one.wire_name for one in self._query).union(*(one.fields for one in self._models))
        self._only_body = not (self._path or self._headers or self._known)
        # A handler that takes the request itself may read its query as it likes.
        self._reads_query = bool(self._known) or not self.wants_request

    async def read(self, call: Call) -> None:
        """Puts the validated parameters into ``call.values``.

        Raises:
            Problem: one that says what does not fit.
        """
        if not self._only_body or call.scope["query_string"]:
            self._read_head(call)
        if self._body is not None:
            call.values[self._body.name] = await self._body.read(call)
        elif call.has_body and not self.wants_request:
            await call.read_body()  # nobody wants it, and what it costs is bounded all the same

    def _read_head(self, call: Call) -> None:
        errors: Errors = []
        values = call.values
        for one in self._path:
            values[one.name] = one.read([str(call.in_path[one.name])], errors)
        for name, one in self._headers:
            text = call.headers.get(name)
            values[one.name] = one.read([] if text is None else [text.decode("latin-1")], errors)
        if self._reads_query:
            query = call.scope["query_string"]
            if query or self._known:
                self._read_query(query, values, errors)
        if errors:
            raise validation_failed(errors)

    def _read_query(self, query: bytes, values: dict[str, Any], errors: Errors) -> None:
        given: dict[str, list[str]] = {}
        if query:
            for name, text in parse_query(query):
                given.setdefault(name, []).append(text)
            unknown_names(given, self._known, errors)
        for one in self._query:
            values[one.name] = one.read(given.get(one.wire_name, []), errors)
        for model in self._models:
            values[model.name] = model.read(given, errors)


def _query_readers(parameters: list[Parameter]) -> tuple[list[TextParameter], list[QueryModel]]:
    texts, models = [], []
    for parameter in parameters:
        kind = bare(parameter.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            models.append(QueryModel(parameter, kind))
        else:
            texts.append(TextParameter(parameter))
    return texts, models
