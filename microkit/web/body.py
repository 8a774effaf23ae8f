"""The body of a request as the value of its parameter."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from microkit.contract import Parameter
from microkit.errors import UnsupportedMediaType
from microkit.injection import bare
from microkit.web.call import JSON, Call
from microkit.web.instants import DETAIL, off_the_calendar, suspicious
from microkit.web.problems import MOST_ERRORS, MalformedJson, pointer, validation_errors, validation_failed
from microkit.web.schema import decimal_fields, types_within
from microkit.web.strict_json import check

_MEDIA_TYPE: Final = re.compile(
    rb"application/(?:json|[\w.!#$&^-]+\+json)[ \t]*(?:;[ \t]*charset=\"?utf-8\"?[ \t]*)?;?\Z", re.IGNORECASE
)
# What Python takes for a Decimal and nobody else for a number: 1_000, Arabic digits, an exponent that fills the memory.
_NUMBER: Final = re.compile(r"\s*[+-]?[\d._]+(?:[eE][+-]?[\d_]+)?\s*\Z")
_ODD: Final = re.compile(r"_|[^\x00-\x7f]|[eE][+-]?\d{3}")
_PERHAPS_ODD: Final = re.compile(rb'"\s*[+-]?[\d.]*(?:_|[eE][+-]?\d{3}|[\x80-\xff]|\\u)')

Search = Callable[[bytes], object]


class JsonBody:
    """Reads a JSON body: strict types, no unknown fields, no JSON that is read in two ways."""

    def __init__(self, parameter: Parameter, depth: int) -> None:
        self.name = parameter.name
        self.required = parameter.required
        self.default = parameter.default
        self._depth = depth
        adapter = TypeAdapter(parameter.annotation)
        self._validate = adapter.validator.validate_json
        schema = repr(adapter.core_schema)
        self._perhaps_times = "datetime" in schema or "function" in schema  # a function may return one
        kinds = types_within(parameter.annotation)
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        # A model may say that it ignores or keeps what it does not know; else unknown fields are refused.
        silent = all("extra" not in model.model_config for model in models)
        self._extra: Any = "forbid" if silent else None
        self._perhaps_odd = _search_for_odd_numbers(parameter.annotation) if Decimal in kinds else None

    async def read(self, call: Call) -> Any:
        """The validated body.

        Raises:
            UnsupportedMediaType: it is not said to be JSON in UTF-8.
            MalformedJson: it cannot be read, or is missing.
            ValidationFailed: it does not fit.
        """
        body = await call.read_body()
        if not body and not self.required:
            return self.default
        media_type = call.headers.get(b"content-type", b"")
        if media_type != JSON and not _MEDIA_TYPE.match(media_type) and (body or media_type):
            raise UnsupportedMediaType("Send application/json in UTF-8", headers={"accept": "application/json"})
        check(body, depth=self._depth)
        try:
            value = self._validate(body, strict=True, extra=self._extra)
        except ValidationError as error:
            if error.error_count() == 1 and (first := error.errors(include_url=False)[0])["type"] == "json_invalid":
                raise MalformedJson(first["msg"].removeprefix("Invalid JSON: ")) from None
            raise validation_failed(validation_errors(error, "body")) from None
        if self._perhaps_odd is not None and self._perhaps_odd(body):
            self._refuse_odd_numbers(body)
        if self._perhaps_times and suspicious(body) and (places := off_the_calendar(value)):
            raise validation_failed(
                [{"in": "body", "pointer": pointer(place), "detail": DETAIL} for place in places[:MOST_ERRORS]]
            )
        return value

    def _refuse_odd_numbers(self, body: bytes) -> None:
        """Puts a word where an odd number stands: the fields that then complain are those that read a number."""
        given = orjson.loads(body)
        plain = _without_odd_numbers(given)
        if plain == given:
            return
        try:
            self._validate(orjson.dumps(plain), strict=True, extra=self._extra)
        except ValidationError as error:
            errors = [
                {"in": "body", "pointer": pointer(one["loc"]), "detail": "Input should be a number in plain digits"}
                for one in error.errors(include_url=False, include_input=False, include_context=False)
                if one["type"] == "decimal_parsing"
            ]
            if errors:
                raise validation_failed(errors) from None


class RawBody:
    """Takes the body as it comes: ``body: bytes``."""

    def __init__(self, parameter: Parameter) -> None:
        self.name = parameter.name

    async def read(self, call: Call) -> bytes:
        return await call.read_body()


def body_reader(parameter: Parameter, depth: int) -> JsonBody | RawBody:
    """The reader for a body parameter."""
    return RawBody(parameter) if bare(parameter.annotation) is bytes else JsonBody(parameter, depth)


def _search_for_odd_numbers(annotation: Any) -> Search:
    """What tells that a body may hold an odd number.

    Where all decimals are fields of models only their values are looked at, which takes a fifth of the time.
    """
    names = decimal_fields(annotation)
    if not names:
        return _PERHAPS_ODD.search
    either = b"|".join(re.escape(name.encode()) for name in names)
    anchor = b'"' + either if len(names) == 1 else b'"(?:' + either + b")"
    search = re.compile(anchor + rb'"\s*:\s*"(?!-?\d{1,40}(?:\.\d{1,40})?")').search
    return lambda body: b"\\u" in body or search(body)


def _without_odd_numbers(value: Any) -> Any:
    if isinstance(value, str):
        return "no number" if _NUMBER.match(value) and _ODD.search(value) else value
    if isinstance(value, dict):
        return {name: _without_odd_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_odd_numbers(one) for one in value]
    return value
