"""An operation on the wire: its arguments as a request, an answer as its result or problem. Built once an operation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode
from uuid import UUID

import orjson
from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticSerializationError, to_json

from microkit.contract import Operation, Parameter, Place
from microkit.errors import BadGateway, Problem, RemoteProblem

R = TypeVar("R")

_PLACES: Final = re.compile(r"(\{\w+\})")
_OWN_MEMBERS: Final = frozenset({"type", "title", "status", "detail", "instance", "trace_id"})


@dataclass(slots=True)  # not frozen: freezing costs more than the request's line
class WireRequest:
    """``target`` is path and query, percent-encoded."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes | None


@dataclass(slots=True)
class WireAnswer:
    """``retry_after`` is the header of that name, ``None`` without one."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class _Field:
    parameter: Parameter
    adapter: TypeAdapter[Any]

    def texts(self, where: str, value: Any) -> list[tuple[str, str]]:
        """The value as names and texts: none for ``None``, many for a list or a model."""
        try:
            plain = self.adapter.dump_python(value, mode="json", by_alias=True, exclude_none=True, warnings="error")
        except PydanticSerializationError as error:
            raise TypeError(f"{where}: argument {self.parameter.name!r}: {error}") from None
        if isinstance(plain, dict):
            return [(name, _text(item)) for name, item in plain.items()]
        if isinstance(plain, list):
            return [(self.parameter.wire_name, _text(item)) for item in plain]
        return [] if plain is None else [(self.parameter.wire_name, _text(plain))]


class OperationCodec(Generic[R]):
    """Writes requests and reads answers of one operation."""

    def __init__(self, operation: Operation[..., R]) -> None:
        self._operation = operation
        self._name = operation.qualified_name
        self._names = frozenset(parameter.name for parameter in operation.parameters)
        self._required = frozenset(parameter.name for parameter in operation.parameters if parameter.required)
        self._has_headers = any(parameter.place is Place.HEADER for parameter in operation.parameters)
        self._has_query = any(parameter.place is Place.QUERY for parameter in operation.parameters)
        self._method = operation.method
        self._fields = {
            place: [
                _Field(parameter, TypeAdapter(parameter.annotation))
                for parameter in operation.parameters
                if parameter.place is place
            ]
            for place in (Place.PATH, Place.QUERY, Place.HEADER)
        }
        self._path = self._template(operation.path)
        self._write_body = next(
            (_body_writer(self._name, p) for p in operation.parameters if p.place is Place.BODY), None
        )
        self._empty = operation.result in (None, NoneType)
        self._result: TypeAdapter[R] = TypeAdapter(operation.result)
        self._problems = {problem.type: problem for problem in operation.raises}

    def request(self, arguments: Mapping[str, Any]) -> WireRequest:
        """The request with these arguments by parameter name.

        Raises:
            TypeError: an argument is missing, unknown, or not of its declared type.
            ValueError: a text cannot stand in a path or a header.
        """
        if arguments.keys() != self._names:
            self._check(arguments)
        headers: dict[str, str] = {}
        if self._has_headers:
            for field in self._given(Place.HEADER, arguments):
                for name, text in field.texts(self._name, arguments[field.parameter.name]):
                    headers[name] = _header_text(self._name, text)
        body = None
        if self._write_body is not None and "body" in arguments:
            body = self._write_body(arguments["body"])
            headers["Content-Type"] = "application/json"
        return WireRequest(self._method, self._target(arguments), headers, body)

    def result(self, answer: WireAnswer) -> R:
        """The result that an answer holds.

        Raises:
            Problem: one that the operation declares.
            RemoteProblem: any other answer that is no success.
            BadGateway: a success whose body is not the operation's result.
        """
        if not 200 <= answer.status < 300:
            raise self._problem(answer)
        if self._empty:
            return None  # type: ignore[return-value]  # R is None here
        try:
            return self._result.validate_json(answer.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = "/".join(str(part) for part in first["loc"])
            raise BadGateway(
                f"{self._operation.contract.contract_service} answered {self._name} with {answer.status} and a body "
                f"that does not fit{f' at {where}' if where else ''}: {first['msg']}"
            ) from None

    def _template(self, path: str) -> list[str | _Field]:
        """The path in parts: as it stands, or to be filled in."""
        fields = {field.parameter.name: field for field in self._fields[Place.PATH]}
        return [fields.get(part[1:-1], part) for part in _PLACES.split(path) if part]

    def _check(self, arguments: Mapping[str, Any]) -> None:
        given = arguments.keys()
        if missing := self._required - given:
            raise TypeError(f"{self._name} misses the arguments {', '.join(sorted(missing))}")
        if unknown := given - self._names:
            raise TypeError(f"{self._name} has no parameters {', '.join(sorted(unknown))}")

    def _given(self, place: Place, arguments: Mapping[str, Any]) -> list[_Field]:
        return [field for field in self._fields[place] if field.parameter.name in arguments]

    def _target(self, arguments: Mapping[str, Any]) -> str:
        target = "".join(
            [part if type(part) is str else self._segment(part, arguments) for part in self._path]  # type: ignore[arg-type]
        )
        if not self._has_query:
            return target
        pairs = [
            pair
            for field in self._given(Place.QUERY, arguments)
            for pair in field.texts(self._name, arguments[field.parameter.name])
        ]
        return f"{target}?{urlencode(pairs)}" if pairs else target

    def _segment(self, field: _Field, arguments: Mapping[str, Any]) -> str:
        """The value of a parameter in the path, percent-encoded."""
        name = field.parameter.name
        value = arguments[name]
        if type(value) is UUID and field.parameter.annotation is UUID:
            return str(value)  # what stands in most paths, and needs neither adapter nor quoting
        texts = field.texts(self._name, value)
        if len(texts) != 1 or texts[0][1] in {"", ".", ".."}:
            raise ValueError(f"{self._name}: {name!r} cannot stand in a path as {value!r}")
        return quote(texts[0][1], safe="")

    def _problem(self, answer: WireAnswer) -> Exception:
        try:
            document = orjson.loads(answer.body)
        except ValueError:
            document = {}
        if not isinstance(document, dict):
            document = {}
        declared = self._problems.get(str(document.get("type")))
        if declared is None or declared.status != answer.status:
            service = self._operation.contract.contract_service
            return RemoteProblem(service, self._operation.name, answer.status, document)
        problem = declared.__new__(declared)  # a subclass may ask for other things than the wire carries
        detail = document.get("detail")
        Problem.__init__(
            problem,
            detail if isinstance(detail, str) else None,
            extensions={name: value for name, value in document.items() if name not in _OWN_MEMBERS},
            headers={"Retry-After": answer.retry_after} if answer.retry_after else {},
        )
        return problem


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _header_text(where: str, text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{where}: {text[:40]!r} cannot stand in a header")
    return text


def _body_writer(where: str, parameter: Parameter) -> Callable[[Any], bytes]:
    adapter: TypeAdapter[Any] = TypeAdapter(parameter.annotation)
    write = _write_with_secrets if _has_secrets(adapter) else _write

    def write_body(value: Any) -> bytes:
        try:
            return write(adapter, value)
        except PydanticSerializationError as error:
            raise TypeError(f"{where}: argument {parameter.name!r}: {error}") from None

    return write_body


def _write(adapter: TypeAdapter[Any], value: Any) -> bytes:
    return adapter.dump_json(value, by_alias=True, warnings="error")


def _write_with_secrets(adapter: TypeAdapter[Any], value: Any) -> bytes:
    """As JSON, with the secrets in it: pydantic masks them in its JSON mode, which is right for logs only."""
    return to_json(_revealed(adapter.dump_python(value, by_alias=True, warnings="error")))


def _revealed(value: Any) -> Any:
    if isinstance(value, SecretStr | SecretBytes):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {name: _revealed(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_revealed(item) for item in value]
    return value


def _has_secrets(adapter: TypeAdapter[Any]) -> bool:
    try:
        return '"format": "password"' in json.dumps(adapter.json_schema(by_alias=True))
    except PydanticInvalidForJsonSchema:
        return False
