"""Parameters that come as text: from the path, the query and headers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from inspect import Parameter as Signature
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from microkit.contract import Parameter
from microkit.web.instants import DETAIL, off_the_calendar, suspicious_text
from microkit.web.problems import pointer, validation_errors

Errors = list[dict[str, Any]]

_INTEGER: Final = (re.compile(r"-?[0-9]{1,19}\Z"), "Input should be an integer in plain digits")
_NUMBER: Final = (re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?\Z"), "Input should be a number in plain digits")
_BOOLEAN: Final = (re.compile(r"(true|false)\Z"), "Input should be true or false")
_INT64: Final = range(-(2**63), 2**63)
_MANY: Final = (list, set, frozenset, tuple)


def leaf_types(annotation: Any) -> set[Any]:
    """The types that a text may become, through ``Annotated``, unions and aliases; ``None`` left out."""
    if hasattr(annotation, "__value__"):
        return leaf_types(annotation.__value__)
    if hasattr(annotation, "__supertype__"):
        return leaf_types(annotation.__supertype__)
    origin = get_origin(annotation)
    if origin is Annotated:
        return leaf_types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return set().union(*(leaf_types(one) for one in get_args(annotation)))
    return set() if annotation in (None, NoneType) else {origin or annotation}


class _Plain:
    """Refuses the numbers and truth values that Python and pydantic take beyond the plain ones.

    ``1_000``, Arabic digits, ``nan``, ``yes``: a gateway, a log search or another language would not read the same.
    """

    def __init__(self, annotation: Any) -> None:
        kinds = leaf_types(annotation)
        rules = [(int, _INTEGER), (bool, _BOOLEAN)]
        self._rule = next((rule for kind, rule in rules if kinds == {kind}), None)
        if self._rule is None and kinds and kinds <= {int, float, Decimal}:
            self._rule = _NUMBER

    def trouble(self, text: str) -> str | None:
        if "\0" in text:
            return "Input should not hold the character U+0000"
        if self._rule is None:
            return None
        pattern, message = self._rule
        if not pattern.match(text) or (self._rule is _INTEGER and int(text) not in _INT64):
            return message
        return None


class TextParameter:
    """One parameter of simple type, or a list of them where the query repeats its name."""

    def __init__(self, parameter: Parameter) -> None:
        self.name = parameter.name
        self.wire_name = parameter.wire_name
        self.place = parameter.place.value
        self.required = parameter.required
        self.default = parameter.default
        self.many = bool(leaf_types(parameter.annotation) & set(_MANY))
        item = next(iter(get_args(_collection(parameter.annotation))), Any) if self.many else parameter.annotation
        self._plain = _Plain(item)
        self._validator: Any = TypeAdapter(parameter.annotation).validator

    def read(self, texts: list[str], errors: Errors) -> Any:
        """The value; a trouble is added to ``errors``."""
        if not texts:
            if self.required:
                errors.append(self._error("This parameter is required"))
            return self.default
        if len(texts) > 1 and not self.many:
            errors.append(self._error("This parameter is there more than once"))
            return None
        for text in texts:
            if trouble := self._plain.trouble(text):
                errors.append(self._error(trouble))
                return None
        try:
            value = self._validator.validate_python(texts) if self.many else self._validator.validate_strings(texts[0])
        except ValidationError as error:
            errors.extend(validation_errors(error, self.place, under=(self.wire_name,)))
            return None
        if any(map(suspicious_text, texts)) and off_the_calendar(value):
            errors.append(self._error(DETAIL))
        return value

    def _error(self, detail: str) -> dict[str, Any]:
        return {"in": self.place, "pointer": pointer([self.wire_name]), "detail": detail}


def _collection(annotation: Any) -> Any:
    """The list type within ``Annotated`` and unions."""
    if get_origin(annotation) in _MANY:
        return annotation
    return next((found for one in get_args(annotation) if (found := _collection(one)) is not None), None)


class QueryModel:
    """A pydantic model whose fields are parameters of the query, such as ``PageRequest``."""

    def __init__(self, parameter: Parameter, model: type[BaseModel]) -> None:
        self.name = parameter.name
        self.default = parameter.default
        self.fields = {(field.alias or name): _Plain(field.annotation) for name, field in model.model_fields.items()}
        self._validator: Any = TypeAdapter(parameter.annotation).validator

    def read(self, given: dict[str, list[str]], errors: Errors) -> Any:
        """The model; ``given`` are the query's values by name."""
        texts: dict[str, str] = {}
        before = len(errors)
        for name, plain in self.fields.items():
            values = given.get(name, ())
            if len(values) > 1:
                errors.append(
                    {"in": "query", "pointer": pointer([name]), "detail": "This parameter is there more than once"}
                )
            elif values and (trouble := plain.trouble(values[0])):
                errors.append({"in": "query", "pointer": pointer([name]), "detail": trouble})
            elif values:
                texts[name] = values[0]
        if len(errors) > before:
            return None
        if not texts and self.default is not Signature.empty:
            return self.default
        try:
            value = self._validator.validate_strings(texts)
        except ValidationError as error:
            errors.extend(validation_errors(error, "query"))
            return None
        if any(map(suspicious_text, texts.values())):
            errors.extend(
                {"in": "query", "pointer": pointer(place), "detail": DETAIL} for place in off_the_calendar(value)
            )
        return value


def unknown_names(given: Iterable[str], known: frozenset[str], errors: Errors) -> None:
    """Refuses parameters that nobody reads: most are misspelt, and a filter that is ignored shows everything."""
    errors.extend(
        {"in": "query", "pointer": pointer([name[:100]]), "detail": "There is no such parameter"}
        for name in given
        if name not in known
    )
