"""Finds the endpoint of a path: whole paths in a dictionary, templates by regular expression, mounts by prefix."""

from __future__ import annotations

from re import Pattern
from typing import Any, Final, Generic, TypeVar

from starlette.convertors import Convertor, StringConvertor
from starlette.routing import compile_path

from microkit.errors import DefinitionError

E = TypeVar("E")

_NOTHING: Final[dict[str, Any]] = {}


class Methods(Generic[E]):
    """What one path offers, by method."""

    __slots__ = ("allowed", "by_method", "template")

    def __init__(self, template: str) -> None:
        self.template = template
        self.by_method: dict[str, E] = {}
        self.allowed = ""

    def add(self, method: str, endpoint: E) -> None:
        if method in self.by_method and method != "HEAD":
            raise DefinitionError(f"{method} {self.template} is there twice")
        self.by_method[method] = endpoint
        if method == "GET":
            self.by_method.setdefault("HEAD", endpoint)
        self.allowed = ", ".join(sorted({*self.by_method, "OPTIONS"}))


class RouteTable(Generic[E]):
    """Templates are grouped by their first segment, so that a thousand routes cost what a few do."""

    def __init__(self) -> None:
        self._whole: dict[str, Methods[E]] = {}
        self._templates: dict[str, list[_Template[E]]] = {}

    def add(self, method: str, path: str, endpoint: E) -> None:
        """Adds an endpoint; HEAD is served by GET's.

        Raises:
            DefinitionError: method and path are taken, or a parameter is named twice.
        """
        try:
            pattern, shape, convertors = compile_path(path)
        except (AssertionError, ValueError) as error:
            raise DefinitionError(f"{method} {path}: {error}") from None
        if not convertors:
            self._whole.setdefault(path, Methods(path)).add(method, endpoint)
            return
        first = path.split("/", 2)[1]
        group = self._templates.setdefault("" if "{" in first else first, [])
        known = next((one for one in group if one.pattern.pattern == pattern.pattern), None)
        if known is None:
            known = _Template(pattern, shape, convertors)
            group.append(known)
            group.sort(key=_Template.generality)
        known.methods.add(method, endpoint)

    def find(self, path: str) -> tuple[Methods[E] | None, dict[str, Any]]:
        """What is at ``path`` and the values of its parameters, as text."""
        whole = self._whole.get(path)
        if whole is not None:
            return whole, _NOTHING
        if not self._templates or not path.startswith("/"):  # OPTIONS *
            return None, _NOTHING
        first = path.split("/", 2)[1]
        for group in (self._templates.get(first, ()) if first else (), self._templates.get("", ())):
            for template in group:
                match = template.pattern.match(path)
                if match is not None:
                    return template.methods, template.values(match.groupdict())
        return None, _NOTHING


class _Template(Generic[E]):
    __slots__ = ("convertors", "methods", "pattern", "shape")

    def __init__(self, pattern: Pattern[str], shape: str, convertors: dict[str, Convertor[Any]]) -> None:
        self.pattern = pattern
        self.shape = shape
        # Text converts to itself, so only what remains costs a call.
        self.convertors = {name: one for name, one in convertors.items() if type(one) is not StringConvertor}
        self.methods: Methods[E] = Methods(shape)

    def generality(self) -> tuple[bool, tuple[bool, ...]]:
        """Orders templates: a segment that is written out comes before a parameter, the rest of a path last."""
        return bool(self.convertors), tuple("{" in segment for segment in self.shape.split("/"))

    def values(self, found: dict[str, Any]) -> dict[str, Any]:
        for name, convertor in self.convertors.items():
            found[name] = convertor.convert(found[name])
        return found
