"""Routes: which service answers which paths, and who may pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from microkit.contract import ANYONE, Roles, roles_of
from microkit.errors import BadRequest, DefinitionError

_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")
_BROKEN_ENCODING = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_CONTROL = re.compile(r"[\x00-\x20\x7f\\]|%(?:0[0-9A-F]|1[0-9A-F]|7F|2F|5C)")
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?=[/;]|\Z)")


@dataclass(frozen=True, slots=True)
class Route:
    """Everything at and below ``prefix`` goes to ``service``.

    ``strip_prefix`` is taken off before the request is sent on: ``Route("/api/bills", service="billing",
    strip_prefix="/api")`` sends ``/api/bills/7`` to billing's ``/bills/7``. ``allow`` is who may pass (a role, several,
    ``SIGNED_IN``); with ``ANYONE``, the default, the service behind judges alone; it judges each operation in any case.
    ``methods`` limits the route to some. ``timeout`` is how many seconds the service may take until its answer begins,
    and between two parts of the answer. ``body_limit`` is in bytes; ``None`` takes the gateway's.
    """

    prefix: str
    service: str
    strip_prefix: str = ""
    allow: Roles = ANYONE
    methods: tuple[str, ...] = ()
    timeout: float = 30.0
    body_limit: int | None = None
    roles: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", roles_of(self.allow, f"The route {self.prefix!r}"))
        if not self.prefix.startswith("/") or (self.prefix != "/" and self.prefix.endswith("/")):
            raise DefinitionError(f"The route's prefix {self.prefix!r} must begin with / and not end with it")
        if canonical_path(self.prefix) != self.prefix:
            raise DefinitionError(f"Write the route's prefix {self.prefix!r} as {canonical_path(self.prefix)!r}")
        if self.strip_prefix and not below(self.prefix, self.strip_prefix):
            raise DefinitionError(
                f"The route {self.prefix!r} does not begin with its strip_prefix {self.strip_prefix!r}"
            )
        if not self.service:
            raise DefinitionError(f"The route {self.prefix!r} names no service")
        if not self.timeout > 0:
            raise DefinitionError(f"The route {self.prefix!r} needs a timeout above 0, not {self.timeout!r}")

    def upstream_path(self, path: str) -> str:
        """The path to ask the service for."""
        return path[len(self.strip_prefix) :] or "/"

    def public_path(self, upstream: str) -> str:
        """The path under which the gateway offers the service's path ``upstream``."""
        return self.strip_prefix + upstream


class RouteTable:
    """Finds the route with the longest prefix; its cost grows with the path's segments, not with the routes."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._by_prefix: dict[str, tuple[Route, ...]] = {}
        for route in routes:
            siblings = self._by_prefix.get(route.prefix, ())
            if any(
                not other.methods or not route.methods or set(other.methods) & set(route.methods) for other in siblings
            ):
                raise DefinitionError(f"Two routes take {route.prefix!r} with the same methods")
            self._by_prefix[route.prefix] = (*siblings, route)

    def find(self, path: str) -> tuple[Route, ...]:
        """The routes of the longest prefix that holds ``path``, which differ in their methods; none where none does."""
        end = len(path)
        while end > 0:
            if found := self._by_prefix.get(path[:end]):
                return found
            end = path.rfind("/", 0, end)
        return self._by_prefix.get("/", ())


def below(path: str, prefix: str) -> bool:
    """Whether ``path`` is ``prefix`` or stands below it."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def canonical_path(path: str) -> str:
    """The one spelling of a path that the gateway decides by and also sends on (RFC 3986, 6.2.2).

    Letters and digits that are percent-encoded are decoded, so that ``/%61dmin`` is seen as what the service will see.

    Raises:
        BadRequest: the path has a second reading, and a gateway and a service could take different ones: empty or dot
            segments, an encoded slash, backslash or control character, broken encoding.
    """
    if "%" in path:
        if _BROKEN_ENCODING.search(path):
            raise BadRequest("The path's percent-encoding is broken")
        path = _ENCODED.sub(_decode_unreserved, path)
    if "//" in path or _DOT_SEGMENT.search(path) or _CONTROL.search(path) or not path.startswith("/"):
        raise BadRequest(
            "The path is ambiguous: it has empty or dot segments, or an encoded slash or control character"
        )
    return path


def _decode_unreserved(encoded: re.Match[str]) -> str:
    character = chr(int(encoded[1], 16))
    return character if character in _UNRESERVED else f"%{encoded[1].upper()}"
