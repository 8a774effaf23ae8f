"""Routes: which service answers which requests, who may pass, and what is done on the way. Pure data.

A route can be written as JSON or TOML and read back (:mod:`microkit.gateway.routes_file`), and rendered for another
proxy: nothing in it is code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field

from microkit.contract import ANYONE, Roles, roles_of
from microkit.errors import DefinitionError
from microkit.gateway.filters.port import Filter
from microkit.gateway.paths import below, canonical_path

VERSION_HEADER = "Api-Version"
"""The header by which a client asks for a version of the API."""

_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


@dataclass(frozen=True, slots=True)
class Route:
    """Everything at and below ``prefix`` that fits the predicates goes to ``service``.

    **Predicates.** ``methods`` limits the route to some, ``host`` to one host (``shop.example``, or ``*.shop.example``
    for all below it; without a port), ``headers`` and ``query`` to requests that have each of these with that value
    (``"*"``: any value; ``"beta*"``: any that begins so), ``version`` to those whose ``Api-Version`` header says it.
    ``exact`` takes the prefix itself and nothing below. The longest prefix wins; of one prefix the route with more
    predicates. Routes with the very same predicates must each have a ``weight``: they share the requests (a canary),
    and one caller always gets the same of them.

    **What happens.** ``strip_prefix`` is taken off before the request is sent on: ``Route("/api/bills",
    service="billing", strip_prefix="/api")`` sends ``/api/bills/7`` to billing's ``/bills/7``. ``allow`` is who may
    pass (a role, several, ``SIGNED_IN``), ``scopes`` what the token must be for, each of them; with ``ANYONE``, the
    default, the service behind judges alone; it judges each operation in any case. ``timeout`` is how many seconds the
    service may take until its answer begins, and between two parts of the answer; ``idle_timeout`` the latter alone,
    and with it the client's body may trickle for as long as it likes. ``body_limit`` and ``answer_limit`` are in bytes;
    ``None`` takes the gateway's, and no limit. ``websocket`` is whether WebSockets pass. ``filters`` are further things
    to do, after those of the gateway.
    """

    prefix: str
    service: str
    strip_prefix: str = ""
    allow: Roles = ANYONE
    methods: tuple[str, ...] = ()
    timeout: float = 30.0
    body_limit: int | None = None
    _: KW_ONLY
    exact: bool = False
    host: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    query: Mapping[str, str] = field(default_factory=dict, hash=False)
    version: str = ""
    weight: int = 0
    scopes: tuple[str, ...] = ()
    idle_timeout: float | None = None
    answer_limit: int | None = None
    websocket: bool = False
    filters: tuple[Filter, ...] = field(default=(), hash=False)
    roles: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", roles_of(self.allow, f"The route {self.prefix!r}"))
        for name in ("methods", "scopes", "filters"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_prefix()
        self._check_predicates()
        for number, what in ((self.timeout, "timeout"), (self.idle_timeout, "idle_timeout")):
            if number is not None and not number > 0:
                raise DefinitionError(f"The route {self.prefix!r} needs a {what} above 0, not {number!r}")
        if self.weight < 0:
            raise DefinitionError(f"The route {self.prefix!r} has the weight {self.weight}; a weight is 0 or more")
        if self.scopes and ANYONE in self.roles:
            raise DefinitionError(f"The route {self.prefix!r} demands scopes and lets ANYONE pass: say allow=SIGNED_IN")

    @property
    def title(self) -> str:
        """The route and its predicates, as messages and logs name it."""
        said = [
            f"{name}: {value}"
            for name, value in (*self.headers.items(), *(("?" + n, v) for n, v in self.query.items()))
        ]
        words = [
            "/".join(self.methods),
            self.host + self.prefix,
            f"version {self.version}" if self.version else "",
            *said,
        ]
        return f"{' '.join(filter(None, words))} → {self.service}"

    @property
    def demanded(self) -> dict[str, str]:
        """The headers that it demands, names in lower case, the version's among them."""
        found = {name.lower(): value for name, value in self.headers.items()}
        return found | ({VERSION_HEADER.lower(): self.version} if self.version else {})

    def upstream_path(self, path: str) -> str:
        """The path to ask the service for."""
        return path[len(self.strip_prefix) :] or "/"

    def public_path(self, upstream: str) -> str:
        """The path under which the gateway offers the service's path ``upstream``."""
        return self.strip_prefix + upstream

    def _check_prefix(self) -> None:
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

    def _check_predicates(self) -> None:
        if self.host and not _HOST.fullmatch(self.host):
            raise DefinitionError(
                f"The route {self.prefix!r}: {self.host!r} is no host; write shop.example, lower case"
            )
        for method in self.methods:
            if not _TOKEN.fullmatch(method) or method != method.upper():
                raise DefinitionError(f"The route {self.prefix!r}: {method!r} is no method; write GET")
        for name, value in self.demanded.items():
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise DefinitionError(f"The route {self.prefix!r} demands {name!r}: {value!r}, which is no header")
