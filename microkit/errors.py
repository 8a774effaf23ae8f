"""The exception tree.

MicrokitError
├── ConfigurationError          a setting is missing or wrong: the service refuses to start
│   └── MissingExtra            an adapter's package is not installed
├── DefinitionError             a contract, handler or saga cannot work as written
├── DeadLetter                  a message that no retry will help: it is dead-lettered at once
│   └── UndecodableMessage      one that cannot be read
├── RemoteProblem               another service answered with a problem nobody declared
└── Problem                     an answer to the caller, rendered as RFC 9457
    ├── BadRequest 400 · Unauthorized 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405
    ├── NotAcceptable 406 · RequestTimeout 408 · Conflict 409 · BodyTooLarge 413 · UrlTooLong 414
    ├── UnsupportedMediaType 415 · MisdirectedRequest 421 · ValidationFailed 422
    ├── TooManyRequests 429 · HeadersTooLarge 431
    └── InternalError 500 · BadGateway 502 · Unavailable 503 · DeadlineExceeded 504
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar


class MicrokitError(Exception):
    """Everything that microkit raises on purpose."""


class ConfigurationError(MicrokitError):
    """A setting is missing or wrong. The message names the key, the trouble and an example."""


class MissingExtra(ConfigurationError):
    """An adapter was asked for whose package is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra {extra!r}: name it where microkit is installed from, as in "
            f"pip install 'microkit[{extra}] @ URL'; in a checkout: pip install -e '.[{extra}]'"
        )
        self.extra = extra


class DefinitionError(MicrokitError):
    """A contract, handler or saga cannot work as written; raised while the program loads or starts."""


class DeadLetter(MicrokitError):
    """Raised by a handler for a message that no retry will help: it goes to its dead-letter topic at once.

    ``reason`` is a stable slug, one of few (``unknown-payee``); it is a header of the dead letter and a label of its
    metric. ``detail`` says more to the person who looks into it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class UndecodableMessage(DeadLetter):
    """A message that no retry will make readable.

    ``reason`` is a stable slug (``unknown-type``, ``newer-version``, ``older-version``, ``not-json``,
    ``invalid-payload`` …).
    """


def slug(name: str) -> str:
    """``BillExpired`` → ``bill-expired``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()


class Problem(MicrokitError):
    """An answer to the caller, rendered as a problem document (RFC 9457).

    A service declares its own by subclassing; the operation that lists the class in ``raises`` documents it, and
    the typed client raises that same class on the other side::

        class BillExpired(Problem, status=409, title="The bill has expired"): ...

    ``detail`` is for the person who reads it. ``extensions`` become members of the document and must be JSON.
    ``headers`` are added to the response.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "urn:problem:internal-error"
    title: ClassVar[str] = "Internal error"

    def __init_subclass__(
        cls,
        *,
        status: int | None = None,
        title: str | None = None,
        type: str | None = None,  # noqa: A002  the RFC's own word
    ) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.status = status
        cls.title = title or (HTTPStatus(cls.status).phrase if status is not None else cls.title)
        cls.type = f"urn:problem:{type or slug(cls.__name__)}"

    def __init__(
        self,
        detail: str | None = None,
        *,
        extensions: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.extensions = dict(extensions or {})
        self.headers = dict(headers or {})

    def document(self) -> dict[str, Any]:
        """The members of the problem document, without ``instance`` and ``trace_id``, which the web floor adds."""
        document: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status}
        if self.detail is not None:
            document["detail"] = self.detail
        return {**self.extensions, **document}


class BadRequest(Problem, status=400): ...


class Unauthorized(Problem, status=401): ...


class Forbidden(Problem, status=403): ...


class NotFound(Problem, status=404): ...


class MethodNotAllowed(Problem, status=405): ...


class NotAcceptable(Problem, status=406): ...


class RequestTimeout(Problem, status=408, title="The request did not come in time"): ...


class Conflict(Problem, status=409): ...


class BodyTooLarge(Problem, status=413, title="The body is too large"): ...


class UrlTooLong(Problem, status=414, title="The URL is too long"): ...


class UnsupportedMediaType(Problem, status=415): ...


class MisdirectedRequest(Problem, status=421): ...


class ValidationFailed(Problem, status=422, title="The request does not fit its schema"): ...


class TooManyRequests(Problem, status=429): ...


class HeadersTooLarge(Problem, status=431, title="The headers are too large"): ...


class InternalError(Problem, status=500, title="Internal error"): ...


class BadGateway(Problem, status=502): ...


class Unavailable(Problem, status=503): ...


class DeadlineExceeded(Problem, status=504, title="The deadline has passed"): ...


class RemoteProblem(MicrokitError):
    """Another service answered with a problem that the operation does not declare.

    Left unhandled it becomes a 502, so that a neighbour's 404 is never mistaken for one's own.
    """

    def __init__(self, service: str, operation: str, status: int, document: Mapping[str, Any]) -> None:
        super().__init__(f"{service}.{operation} answered {status}: {document.get('detail') or document.get('title')}")
        self.service = service
        self.operation = operation
        self.status = status
        self.document = dict(document)

    @property
    def type(self) -> str:
        """The problem's ``type``, ``about:blank`` where the answer was no problem document."""
        return str(self.document.get("type", "about:blank"))
