"""Changes declared fields of JSON bodies, on the way in and on the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import orjson

from microkit.errors import BadGateway, BadRequest, DefinitionError, UnsupportedMediaType
from microkit.gateway.exchange import Answer, Exchange, Handler
from microkit.gateway.filters.port import Filter, Tools

LIMIT: Final = 1024 * 1024

_LONG_NUMBER: Final = re.compile(rb"[0-9][0-9.eE+-]{15}")
"""As many digits as a float may not hold."""

_WRITTEN: Final = "a field is written as its name, or as the way to it with dots: customer.name"


def _check(kind: str, rename: Mapping[str, str], remove: tuple[str, ...], given: Mapping[str, Any]) -> None:
    if not (rename or remove or given):
        raise DefinitionError(f"{kind} changes nothing: give it rename, remove or set")
    for path in (*rename, *remove, *given):
        if not path or not all(path.split(".")):
            raise DefinitionError(f"{kind}: {path!r} names no field: {_WRITTEN}")
    for path, name in rename.items():
        if not name or "." in name:
            raise DefinitionError(f"{kind}: {path} cannot be renamed to {name!r}: a name has no dots, the place stays")


def changed(document: Any, rename: Mapping[str, str], remove: tuple[str, ...], given: Mapping[str, Any]) -> Any:
    """The document with its fields changed, in place; of a list each entry. Fields that are not there are left alone,
    but for those of ``given``, which are set where what holds them is an object."""
    if isinstance(document, list):
        return [changed(entry, rename, remove, given) for entry in document]
    for path in remove:
        holder, name = _holder(document, path)
        if holder is not None:
            holder.pop(name, None)
    for path, new in rename.items():
        holder, name = _holder(document, path)
        if holder is not None and name in holder:
            holder[new] = holder.pop(name)
    for path, value in given.items():
        holder, name = _holder(document, path)
        if holder is not None:
            holder[name] = value
    return document


def _holder(document: Any, path: str) -> tuple[dict[str, Any] | None, str]:
    *way, name = path.split(".")
    for step in way:
        document = document.get(step) if isinstance(document, dict) else None
    return (document if isinstance(document, dict) else None), name


def _rewritten(body: bytes, changes: _Rewriting) -> bytes:
    """Numbers that a float would round go through as they are written: an amount is not the gateway's to change.

    Raises:
        ValueError, TypeError, RecursionError: it is no JSON, or nested too deep.
    """
    document = orjson.loads(body)
    if _LONG_NUMBER.search(body):
        document = json.loads(body, parse_int=_exact, parse_float=_exact)
    return orjson.dumps(changed(document, changes.rename, changes.remove, changes.set))


def _exact(number: str) -> orjson.Fragment:
    return orjson.Fragment(number)


def _is_json(kind: bytes | None) -> bool:
    plain = (kind or b"").partition(b";")[0].strip().lower()
    return plain == b"application/json" or plain.endswith(b"+json")


@dataclass(frozen=True, slots=True)
class _Rewriting(Filter):
    """Which fields are changed, of documents of at most ``limit`` bytes."""

    rename: Mapping[str, str] = field(default_factory=dict, hash=False)
    remove: tuple[str, ...] = ()
    set: Mapping[str, Any] = field(default_factory=dict, hash=False)
    limit: int = LIMIT

    def __post_init__(self) -> None:
        _check(self.kind, self.rename, self.remove, self.set)


@dataclass(frozen=True, slots=True)
class RewriteRequestJson(_Rewriting):
    """``RewriteRequestJson(rename={"mail": "email"}, remove=("is_admin",), set={"source": "web"})``.

    Fields inside objects are named with dots; of a list each entry is changed. A body of more than ``limit`` bytes is
    refused (413), one that is no JSON as well (400), one of another type or compressed (415). One that is not there is
    left alone.
    """

    kind: ClassVar[str] = "rewrite-request-json"

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def rewritten(exchange: Exchange) -> Answer:
            if exchange.body is not None:
                if not _is_json(exchange.asked.get(b"content-type")) or b"content-encoding" in exchange.asked:
                    raise UnsupportedMediaType(
                        "Send application/json, not compressed", headers={"accept": "application/json"}
                    )
                body = await exchange.read_body(self.limit)
                try:
                    exchange.body = _rewritten(body, self)
                except (ValueError, TypeError, RecursionError):
                    raise BadRequest("The body is no JSON, or too deep") from None
            return await inner(exchange)

        return rewritten


@dataclass(frozen=True, slots=True)
class RewriteResponseJson(_Rewriting):
    """As :class:`RewriteRequestJson`, of answers.

    Answers of another type, and problems, pass as they are. One that is larger than ``limit`` bytes, or no JSON, is a
    502: fields that are to be removed are never let through unread. The service is asked not to compress.
    """

    kind: ClassVar[str] = "rewrite-response-json"

    def around(self, inner: Handler, tools: Tools) -> Handler:
        async def rewritten(exchange: Exchange) -> Answer:
            exchange.set(b"accept-encoding", b"identity")
            exchange.drop(b"range")  # a part of a document cannot be changed
            answer = await inner(exchange)
            kind = answer.header(b"content-type")
            if answer.empty or exchange.method == "HEAD" or not _is_json(kind) or kind == b"application/problem+json":
                if exchange.method == "HEAD":
                    answer.headers = [pair for pair in answer.headers if pair[0] not in _OF_THE_BYTES]
                    answer.length = None
                return answer
            body = await answer.whole(self.limit)
            if body is None or answer.header(b"content-encoding") not in {None, b"identity"}:
                if answer.close is not None:
                    answer.close()
                raise BadGateway(f"The answer is too large to be changed, or compressed: at most {self.limit} bytes")
            try:
                answer.body = _rewritten(body, self)
            except (ValueError, TypeError, RecursionError):
                raise BadGateway("The service gave an answer that is no JSON, or too deep") from None
            answer.headers = [pair for pair in answer.headers if pair[0] not in _OF_THE_BYTES]
            return answer

        return rewritten


_OF_THE_BYTES: Final = frozenset(
    {b"etag", b"content-md5", b"digest", b"content-digest", b"repr-digest", b"accept-ranges"}
)
"""Headers that were true of the bytes before they were changed."""
